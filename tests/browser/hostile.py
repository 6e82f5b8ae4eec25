"""Texts that would do more than be read, and what a page must not hold of them."""

from __future__ import annotations

import re

# Elements and attributes by which a text would do more than be read.
HARMFUL = """(root) => [...root.querySelectorAll('*')].filter((each) =>
    /^(script|img|iframe|svg|style|meta|base|object|embed|link|form|video|audio)$/i
        .test(each.tagName)
    || [...each.attributes].some(({name}) => /^on|^srcdoc|^src$/i.test(name))
    || (each.hasAttribute('href') && !(/^(https?|mailto):$/.test(each.protocol)
        && each.rel.includes('noopener')))
).map((each) => each.outerHTML.slice(0, 200))"""
UNSEEN = re.compile("[\x00\x07\x1b\u061c\u115f\u200e\u200f\u202e\u2066\u3164\U000e0041\U000e0110]")

HOSTILE = [
    "<script>window.harmed = 1; alert(1)</script>",
    "<img src=x onerror='window.harmed = 1'><svg onload='window.harmed = 1'></svg>",
    "<iframe src='https://evil.example/'></iframe><style>* {display: none}</style>",
    "<meta http-equiv=refresh content='0; url=https://evil.example/'><base href='//evil.example/'>",
    "[a link](javascript:window.harmed=1) [one](java\nscript:alert(1)) <javascript:alert(1)>",
    "[data](data:text/html,<script>alert(1)</script>) [user](https://bank.example@evil.example/)",
    "![a picture](https://evil.example/seen.png) ![x](x\" onerror=\"window.harmed=1)",
    "file:///etc/passwd https://evil.example/\u202ehtml.exe and \x00\x07\x1b[31m, zero\u200bwidth",
    "\u05e9\u05dc\u05d5\u05dd \u202e reversed \u2066 isolated \U000e0041\U000e0042 hidden",
    "\u061c\u200e\u200f marks, \u115f\u3164 fillers, a\U000e0110 selector",
    "| a | b |\n|---|---|\n| <b onclick='window.harmed=1'>x</b> | `<i>` |\n\n> <u>quoted</u>",
    '{"__proto__": {"harmed": 1}, "constructor": "<script>alert(1)</script>", "toString": null}',
    "[" * 25_000,
    "*" * 25_000 + "a" + "_" * 25_000,
    "> " * 10_000 + "deep",
    "|" * 20_000 + "\n" + "|-" * 10_000,
    "\n".join(f"{' ' * (2 * i)}- {i}" for i in range(300)),
    "e\u0301\u0302\u0303" * 5_000 + "\ud83d",
    "line\n" * 40_000,
]  # fmt: skip
