"""Python's string and list methods as Jinja evaluates them in a chat template:

    venv/bin/python tests/golden/templates/methods.py > tests/golden/templates/methods.json
"""

import json

from transformers.utils.chat_template_utils import render_jinja_template

TEXTS = ["", "5", "-42", "+7", "²", "٣", "hello world", "Hello World", "HELLO", "it's über-straße", "  pad\t\n", "a,b,,c,", "one  two   three ", "x\ty\tz", "l1\nl2\r\nl3\r\r\n", "日本 語", "a_b1", "1a", "é\u2028end\x1c", "Don't Panic"]
CALLS = [
    "upper()", "lower()", "capitalize()", "title()", "swapcase()", "casefold()",
    "zfill(3)", "zfill(0)", "center(8)", "center(7, '*')", "ljust(8, '.')", "rjust(8)", "rjust(-1)",
    "strip()", "lstrip()", "rstrip()", "strip('a,l')", "lstrip('h5')", "rstrip(' o,')", "strip(none)",
    "split()", "split(',')", "split(none, 1)", "split(',', 1)", "split(',', maxsplit=2)", "split(sep=',')", "split(maxsplit=1)",
    "rsplit()", "rsplit(',', 1)", "rsplit(none, 1)", "rsplit(maxsplit=2)",
    "splitlines()", "splitlines(true)", "splitlines(keepends=true)", "partition(',')", "rpartition(',')", "partition('zz')", "rpartition('zz')",
    "removeprefix('hello')", "removesuffix('World')", "expandtabs()", "expandtabs(4)", "expandtabs(tabsize=2)", "expandtabs(0)",
    "find('l')", "find('l', 3)", "find('', 99)", "find('o', 0, 5)", "find('o', -5)", "rfind('l')", "rfind('l', 0, 3)", "count('l')", "count('')", "count('l', 3)", "count('o', 0, -1)",
    "startswith('h')", "startswith(('x', 'H'))", "startswith('l', 2)", "startswith(('l', 'w'), 2, 4)", "endswith('d')", "endswith('l', 0, 3)", "endswith((',', '5'))",
    "replace('l', 'L')", "replace('l', '', 1)", "replace('', '-')", "join(['a', 'b'])",
    "isalpha()", "isalnum()", "isdecimal()", "isdigit()", "islower()", "isupper()", "istitle()", "isspace()", "isascii()", "isidentifier()", "isprintable()",
]
OTHERS = [
    "'hello'.index('l')", "'hello'.rindex('l')", "'{} and {}'.format(1, 'x')", "'{0}{1}{0}'.format('a', 'b')", "'{n}'.format(n=3)",
    "[1, 2, 2].count(2)", "['a', 'b'].index('b')", "[1, 2].copy()", "{'a': 1}.copy()", "{'a': 1}.get('a')", "{'a': 1}.get('b', 2)", "{'a': 1}.get('b')",
    "{'a': 1}.keys() | list", "{'a': 1}.values() | list", "{'a': 1}.items() | list", "dict(a=1)",
    "'a-b'.split('-')[0].upper()", "('a' ~ 1).zfill(4)", "'abc'[::-1].upper()", "'x'.join(['a', 'b'])", "'7'.zfill(3) ~ '|'",
]
FAILING = ["'hello'.index('z')", "'a'.split('')", "'a'.partition('')", "['a'].index('b')", "'a'.nosuch()", "'a'.zfill()"]


def value(expression, s):
    try:
        return render_jinja_template([[]], chat_template="{{ [" + expression + "] | tojson }}", s=s)[0][0]
    except Exception:
        return None


def main():
    calls = [{"call": call, "values": [value(f"s.{call}", s) for s in TEXTS]} for call in CALLS]
    others = [{"expression": expression, "value": value(expression, "")} for expression in OTHERS + FAILING]
    print(json.dumps({"texts": TEXTS, "calls": calls, "others": others}, indent=1))


main()
