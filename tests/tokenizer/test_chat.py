"""Chat templates: rendered as transformers renders them, and kept from doing anything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glassformer.errors import TextError, TokenizerError
from glassformer.tokenizer.chat import render
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.test_tokenizer import pair

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe "
    "kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Blocks on lines of their own, a macro, a namespace, tojson, loop controls, raise_exception: what templates use.
LONG = """{{ bos_token }}
{%- macro said(text) %}[{{ text | trim }}]{% endmacro %}
{%- set seen = namespace(count=0) %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {% if (message['role'] == 'user') != (seen.count % 2 == 0) %}
        {{ raise_exception('Roles must alternate!') }}
    {% endif %}
    {% set seen.count = seen.count + 1 %}
{{ message.role }}: {{ said(message['content']) }} {{ {"a": "<é>"} | tojson }}
{% endfor %}
{% generation %}
{{ tools is none }} {{ documents is defined }}
{% endgeneration %}
{% if add_generation_prompt %}assistant:{% endif %}"""
HELLO = [{"role": "user", "content": " Hi & <you> "}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("template", [CHATML, LONG])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_same_as_transformers(template: str, prompt: bool) -> None:
    _, reference = pair("GPT2")
    messages = [*HELLO, {"role": "user", "content": "日本\n"}]
    want = reference.apply_chat_template(messages, chat_template=template, add_generation_prompt=prompt, tokenize=False)
    variables = {"bos_token": reference.bos_token, "eos_token": reference.eos_token}
    assert render(template, messages, generation_prompt=prompt, variables=variables) == want


def test_what_a_client_sends_as_null_is_not_there() -> None:
    _, reference = pair("GPT2")
    template = "{% for m in messages %}{{ m.role }}{% if 'tool_calls' in m %}!{% endif %}{{ m.content }};{% endfor %}"
    messages = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "assistant", "content": None}]
    want = reference.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert render(template, messages) == want == "usera;assistant;"


def with_template(tmp_path: Path, template: str) -> Tokenizer:
    pair("GPT2")[0].save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
    return Tokenizer.from_directory(tmp_path)


def test_templates_are_read_and_kept(tmp_path: Path) -> None:
    ours = with_template(tmp_path / "a", CHATML)
    assert ours.render_chat(HELLO, generation_prompt=False).endswith("Hello<|im_end|>\n")
    ours.save(tmp_path / "b")
    assert Tokenizer.from_directory(tmp_path / "b").chat_template == CHATML
    fields = ours.gguf_fields()
    assert fields["tokenizer.chat_template"] == CHATML
    assert Tokenizer.from_gguf(fields).chat_template == CHATML


@pytest.mark.parametrize(
    "config",
    [
        '{"chat_template": "{{ messages[0].content }}"}',
        '{"chat_template": [{"name": "tool_use", "template": "no"},'
        ' {"name": "default", "template": "{{ messages[0].content }}"}]}',
    ],
)
def test_templates_in_the_configuration(tmp_path: Path, config: str) -> None:
    pair("GPT2")[0].save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert Tokenizer.from_directory(tmp_path).render_chat([{"role": "user", "content": "x"}]) == "x"


def test_without_a_template() -> None:
    with pytest.raises(TokenizerError, match="This model has no chat template: it was not trained on conversations"):
        pair("GPT2")[0].render_chat(HELLO)


def test_the_date_is_there() -> None:
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}", HELLO))


def test_a_refusal_is_one_sentence() -> None:
    with pytest.raises(TextError) as caught:
        render(LONG, [HELLO[1]])
    assert str(caught.value) == "The model's chat template refuses these messages: Roles must alternate!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.x }}",
    ],
)
def test_templates_are_kept_in_their_sandbox(template: str) -> None:
    with pytest.raises(TokenizerError, match=r"The model's chat template failed on these messages \(\w+: "):
        render(template, HELLO)


def test_a_broken_template() -> None:
    with pytest.raises(TokenizerError, match="The model's chat template is not a valid Jinja template"):
        render("{% for %}", HELLO)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "A chat needs at least one message; none was given."),
        ("hello", 'A chat is a list of messages such as {"role": "user", "content": "Hello"}.'),
        (
            [{"content": "x"}],
            'Message 0 of the chat has no role; each is {"role": "user", "content": "..."} or alike.',
        ),
        ([HELLO[0], {"role": "assistant"}], "Message 1 of the chat (role 'assistant') has no content."),
    ],
)
def test_what_is_no_chat(messages: Any, message: str) -> None:
    with pytest.raises(TextError) as caught:
        render(CHATML, messages)
    assert str(caught.value) == message
