#!/usr/bin/env python3
"""Draws the lines of `rollcall audit what-if --sweep --json` as an SVG: false offlines against detection delay.

    rollcall audit what-if --sweep platforms.android.timeout_ms=120000..660000/10 --json | python3 examples/analytics/curve.py
"""

import json
import sys

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 70, 30, 30, 60


def ticks(greatest):
    """About five round numbers from 0 to beyond the greatest value."""
    step = 1
    while greatest / step > 6:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return [step * number for number in range(int(greatest / step) + 2)]


def main():
    points = [json.loads(line) for line in sys.stdin if line.strip()]
    seconds = [point["detection_ms"]["would"]["p50"] / 1000 for point in points]
    false = [point["false_offlines"]["would"] for point in points]
    across, up = ticks(max(seconds)), ticks(max(false))

    def x(value):
        return round(LEFT + value / across[-1] * (WIDTH - LEFT - RIGHT), 1)

    def y(value):
        return round(HEIGHT - BOTTOM - value / up[-1] * (HEIGHT - TOP - BOTTOM), 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for value in up:
        out.append(f'<path d="M{LEFT} {y(value)}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end" fill="#555">{value}</text>')
    for value in across:
        out.append(f'<path d="M{x(value)} {HEIGHT - BOTTOM}v5" stroke="#555"/>')
        out.append(f'<text x="{x(value)}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#555">{value}</text>')
    line = " ".join(f"{x(second)},{y(count)}" for second, count in zip(seconds, false))
    out.append(f'<polyline points="{line}" fill="none" stroke="#1668b8" stroke-width="2"/>')
    for point, second, count in zip(points, seconds, false):
        label = f"{point['value'] // 1000} s"
        out.append(f'<circle cx="{x(second)}" cy="{y(count)}" r="4" fill="#1668b8"/>')
        out.append(f'<text x="{x(second) + 7}" y="{y(count) - 7}" fill="#222">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(
        f'<text x="{middle}" y="{HEIGHT - 15}" text-anchor="middle" fill="#222">'
        "seconds until a loss is found out (median); at each point the time-out</text>"
    )
    out.append(f'<text x="{LEFT}" y="{TOP - 12}" fill="#222">false offlines</text>')
    out.append("</svg>")
    print("\n".join(out))


main()
