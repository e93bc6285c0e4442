"""Calls a server with PyPI's timsdk, unchanged: tim.py APP KEY IDENTIFIER CALLS prints the answers, as JSON.

Each call is a list: query_state and user ids, kick and a user id, or post with a command and its body. The library
speaks https to its one host; where that leads is the caller's business (HTTPS_PROXY, REQUESTS_CA_BUNDLE).
"""

import json
import sys

from timsdk import TimClient


def main():
    app, key, identifier, calls = sys.argv[1:]
    tim = TimClient(app_id=int(app), app_key=key, identifier=identifier)
    answers = []
    for name, *arguments in json.loads(calls):
        if name == "query_state":
            answers.append(tim.open_im.query_state(arguments))
        elif name == "kick":
            answers.append(tim.im_open_login_svc.kick(arguments[0]))
        else:
            answers.append(tim.open_im.get_client().post(arguments[0], data=arguments[1]))
    print(json.dumps(answers))


main()
