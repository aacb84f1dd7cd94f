"""Chat templates: ordinary ones work, greedy ones are stopped."""

# ruff: noqa: E501 - a template is clearer on one line

from __future__ import annotations

import pytest

from gpu_worker.template import ChatTemplate, TemplateError

TURNS = [{"role": "system", "content": " s "}, {"role": "user", "content": "u"}]
LLAMA = (
    "{{- bos_token }}{% for m in messages %}"
    "{{- '<|h|>' + m['role'] + '<|e|>' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|e|>' }}{%- endif %}"
)
ALTERNATING = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}"
    "{% endif %}{{ '[' ~ loop.index ~ ']' ~ m.content.strip() ~ eos_token }}{% endfor %}"
)


def test_ordinary_templates_work() -> None:
    assert (
        ChatTemplate(LLAMA).render(TURNS, bos="<b>", eos="</b>")
        == "<b><|h|>system<|e|>s<|eot|><|h|>user<|e|>u<|eot|><|h|>assistant<|e|>"
    )
    assert ChatTemplate(ALTERNATING).render(TURNS, bos="", eos="$") == "[1]u$"


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(TemplateError, match="order"):
        ChatTemplate(ALTERNATING).render([{"role": "assistant", "content": "x"}], bos="", eos="")


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% import 'x' as y %}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% block b %}{% endblock %}",
        "{% for a in range(9) %}{% for b in range(9) %}{% for c in range(9) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ unclosed",
    ],
)
def test_more_than_a_layout_is_refused_at_once(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source", ["{{ raise_exception.__globals__ }}", "{{ self._TemplateReference__context }}"]
)
def test_hidden_attributes_are_nothing(source: str) -> None:
    assert ChatTemplate(source).render(TURNS, bos="", eos="") == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 9 }}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 2 ** 1000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ messages | tojson }}",
        "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "{% for a in range(1000) %}{% for b in range(1000) %}{{ 'x' }}{{ 'yyyyyyyy' }}{% endfor %}{% endfor %}",
        "{{ range(10 ** 9) }}",
        "{{ range(1000000000) | list }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler }}{{ cycler('a').next() }}",
        "{{ undefined_thing.x }}",
    ],
)
def test_greed_and_escape_end_in_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(TURNS, bos="", eos="")
