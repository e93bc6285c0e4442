"""Signs with PyPI's tls-sig-api-v2: sign.py APP KEY IDENTIFIER EXPIRE [USERBUF] prints the UserSig."""

import sys

from TLSSigAPIv2 import TLSSigAPIv2

app, key, identifier, expire = sys.argv[1:5]
api = TLSSigAPIv2(int(app), key)
if len(sys.argv) > 5:
    print(api.gen_sig_with_userbuf(identifier, int(expire), sys.argv[5].encode()))
else:
    print(api.gen_sig(identifier, int(expire)))
