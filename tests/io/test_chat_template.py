"""Chat templates read as transformers reads them, and stay within limits."""

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from jaxdave.io import chat_template
from jaxdave.io.chat_template import compile_template, parse_template_args

TURNS = [
    {"role": "system", "content": "Be brief, <b>é</b>."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "tool_calls": [{"name": "f"}]},
    {"role": "user", "content": "3 > 2?\n"},
]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endfor %}",
        "{% set x = 1 %}{%- generation -%} {% set x = 2 %} {% endgeneration %}{{ x }}",
        "{% if tools is not none %}tools{% endif %}{% if documents %}d{% endif %}",
        "{% if tools is defined and tools is none %}none{% endif %}",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
        "{{ messages[0] | tojson(sort_keys=true, separators=(',', ':')) }}",
        "{{ messages | tojson(ensure_ascii=true) }}",
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{{ m.role }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
        "{{ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}{{ dict(a=1) }}",
        "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}{{ bos_token }}",
        "{{ strftime_now('%Y') }}{{ messages[::-1][0].content.strip().split('>') }}",
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
        "{% endif %}{{ add_generation_prompt }}{{ undefined_name }}",
        "{{ '%s-%d' % ('a', 3) }}{{ 'ab' * 3 }}{{ 2 ** 5 }}{{ 7 % 4 }}",
        "{{ messages | map(attribute='role') | join(', ') }}{{ [1, 2] | join }}",
        "{{ 'a-b'.replace('-', '+') }}{{ 'ab' | replace('a', 'xx') | indent(2) }}"
        "{{ '{}-{:>3}'.format('a', 1) }}{{ '%s' | format('a') }}{{ ', '.join(['a']) }}"
        "{{ [1, 'a'] | string }}{{ 'a b' | wordwrap(1) }}{{ 'ab' | center(4) }}"
        "{{ 'a\tb'.expandtabs(4) }}{{ 'abc' | truncate(3) }}{{ 2.345 | round(1) }}",
    ],
)
def test_templates_read_as_in_transformers(source):
    arguments: dict[str, Any] = {"enable_thinking": False}
    (want,), _ = render_jinja_template(
        [TURNS], chat_template=source, add_generation_prompt=True,
        bos_token="<s>", **arguments,
    )  # fmt: skip
    assert compile_template(source, {"bos_token": "<s>"})(TURNS, arguments) == want


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ [1] * 9999999999 }}",
        "{{ [1] | tojson(indent=9999999999) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set x = 'ab' %}" + "{% set x = x ~ x %}\n" * 60,
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ lipsum(n=10**6) }}",
        "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
        "{{ 'a' * 10**6 | replace('a', 'b' * 10**6) }}",
        "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
        "{{ ('x' * 10**6).join(['a'] * 10**6) }}",
        "{{ ['a'] * 10**6 | join('x' * 10**6) }}",
        "{{ (['a'] * 10**6) | join('x' * 10**6) }}",
        "{{ (['a'] * 10**5) | map('center', 10**5) | join('x' * 10**6) }}",
        "{{ (['a'] * 10**5) | map('center', 10**5) | list }}",
        "{{ (['a'] * 10**5) | map('center', 10**5) | sum(start='') }}",
        "{{ ['x' * 10**6] * 10**6 }}",
        "{{ ('\n' * 10**6) | indent(10**6, true) }}",
        "{{ ('\n' * 10**6) | indent('x' * 10**6, true) }}",
        "{{ ('\t' * 10**6).expandtabs(10**6) }}",
        "{{ ('{0}' * 10**6).format('x' * 10**6) }}",
        "{{ ('%s' * 10**6) % (('x' * 10**6,) * 10**6) }}",
        "{{ ('x ' * 10**6) | wordwrap(1, true, 'y' * 10**6) }}",
        "{% set ns = namespace(x=[]) %}{% set big = 'x' * 10**7 %}"
        "{% for i in range(10) %}{% set ns.x = ns.x + [big] %}{% endfor %}"
        "{{ ns.x | string }}",
    ],
)
def test_templates_end(source, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_LINES", 200_000)
    start = time.monotonic()
    with pytest.raises(ValueError, match="the chat template") as caught:
        compile_template(source, {})(TURNS, {})
    assert "\n" not in str(caught.value)
    # Generous, as machines are busy: without limits these run for hours.
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("source", ["{% if", "{{ x", "{% nonsense %}", "{% endfor %}"])
def test_broken_templates_are_refused_when_opened(source):
    with pytest.raises(ValueError, match="the chat template is broken"):
        compile_template(source, {})


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{{ raise_exception('no') }}"],
)
def test_what_fails_is_one_line(source):
    with pytest.raises(ValueError, match="refuses the messages"):
        compile_template(source, {})(TURNS, {})


def test_contents_are_texts():
    render = compile_template(
        "{% for m in messages %}[{{ m.content }}]{% endfor %}", {}
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert render(turns, {}) == "[ab][]"


def test_arguments_of_a_command_line():
    words = ["thinking=false", "n=3", "name=Mia", 'quoted="3"', "empty="]
    want = {"thinking": False, "n": 3, "name": "Mia", "quoted": "3", "empty": ""}
    assert parse_template_args(words) == want
    for word in ("x", "=1", "a b=1"):
        with pytest.raises(ValueError, match="must read NAME=VALUE"):
            parse_template_args([word])
