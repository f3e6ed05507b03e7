"""Real clients against the server: which of what they do works, client by client, with a model that answers.

Each client runs in an environment of its own (`make clients` makes it); a feature is either seen to work or what went
wrong is printed. The Node clients run where node is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
HELLO: Any = [{"role": "user", "content": "Say hello."}]
CALL: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = {"type": "function", "function": {"name": "look", "description": "Look at a city.", "parameters": SCHEMA}}
Seen = Callable[[], Any]


def openai_python(url: str, model: str) -> dict[str, Seen]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    chat = client.chat.completions.create

    def embedded() -> Any:
        return len(client.embeddings.create(model=model, input="a").data[0].embedding) > 10

    return {
        "text": lambda: chat(model=model, messages=HELLO, max_tokens=5).choices[0].message.content,
        "stream": lambda: list(chat(model=model, messages=HELLO, max_tokens=5, stream=True))[-1].choices,
        "schema": lambda: json.loads(
            chat(
                model=model,
                messages=HELLO,
                response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA, "strict": True}},
            )
            .choices[0]
            .message.content
        )["city"],
        "tools": lambda: json.loads(
            chat(model=model, messages=CALL, tools=[TOOL], tool_choice="required")
            .choices[0]
            .message.tool_calls[0]
            .function.arguments
        )["city"],
        "embeddings": embedded,
        "responses": lambda: client.responses.create(model=model, input="Hello", max_output_tokens=5).output,
        "context error": lambda: _raises(
            lambda: chat(model=model, messages=[{"role": "user", "content": "a " * 20_000}]), openai.BadRequestError
        ),
    }


def anthropic_python(url: str, model: str) -> dict[str, Seen]:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none")
    tool: Any = {"name": "look", "input_schema": SCHEMA}

    def streamed() -> Any:
        with client.messages.stream(model=model, max_tokens=5, messages=HELLO) as stream:
            return "".join(stream.text_stream)

    def called() -> Any:
        answer = client.messages.create(
            model=model, max_tokens=100, messages=CALL, tools=[tool], tool_choice={"type": "any"}
        )
        return next(block.input for block in answer.content if block.type == "tool_use")["city"]

    return {
        "text": lambda: client.messages.create(model=model, max_tokens=5, messages=HELLO).content[0].text,
        "stream": streamed,
        "tools": called,
    }


def ollama_python(url: str, model: str) -> dict[str, Seen]:
    import ollama

    client, few = ollama.Client(host=url), {"num_predict": 5}
    return {
        "text": lambda: client.chat(model, messages=HELLO, options=few).message.content,
        "stream": lambda: list(client.chat(model, messages=HELLO, options=few, stream=True))[-1].done,
        "schema": lambda: json.loads(client.chat(model, messages=HELLO, format=SCHEMA).message.content)["city"],
        "embeddings": lambda: client.embed(model, "a").embeddings[0],
    }


def langchain_openai(url: str, model: str) -> dict[str, Seen]:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", max_tokens=100)
    embeddings = OpenAIEmbeddings(model=model, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False)
    structured = chat.with_structured_output({"title": "city", **SCHEMA}, method="json_schema")
    return {
        "text": lambda: chat.invoke("Say hello.").content,
        "stream": lambda: [one.content for one in chat.stream("Say hello.")],
        "schema": lambda: structured.invoke("Name a city.")["city"],
        "tools": lambda: chat.bind_tools([TOOL], tool_choice="required").invoke("Look.").tool_calls[0]["args"]["city"],
        "embeddings": lambda: embeddings.embed_query("a"),
    }


def litellm_python(url: str, model: str) -> dict[str, Seen]:
    import litellm

    def ask(**more: Any) -> Any:
        given = {"messages": HELLO, "max_tokens": 100, **more}
        return litellm.completion(model=f"openai/{model}", api_base=f"{url}/v1", api_key="none", **given)

    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
    long = [{"role": "user", "content": "a " * 20_000}]
    return {
        "text": lambda: ask().choices[0].message.content,
        "stream": lambda: list(ask(stream=True)),
        "schema": lambda: json.loads(ask(response_format=form).choices[0].message.content)["city"],
        "tools": lambda: ask(messages=CALL, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls[0],
        "embeddings": lambda: litellm.embedding(
            model=f"openai/{model}", input=["a"], api_base=f"{url}/v1", api_key="none"
        ).data[0],
        "context error": lambda: _raises(lambda: ask(messages=long), litellm.ContextWindowExceededError),
    }


def instructor_python(url: str, model: str) -> dict[str, Seen]:
    from typing import Literal

    import instructor
    import openai
    from pydantic import BaseModel

    class City(BaseModel):
        city: Literal["Paris", "Rome"]
        big: bool

    def made(mode: Any) -> Any:
        client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)
        return client.chat.completions.create(model=model, messages=HELLO, response_model=City, max_retries=0)

    return {"schema": lambda: made(instructor.Mode.JSON_SCHEMA), "tools": lambda: made(instructor.Mode.TOOLS)}


def pydantic_ai(url: str, model: str) -> dict[str, Seen]:
    from typing import Literal

    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class City(BaseModel):
        city: Literal["Paris", "Rome"]
        big: bool

    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    few: Any = {"max_tokens": 200}
    return {
        "text": lambda: Agent(chat, model_settings=few).run_sync("Say hello.").output,
        "schema": lambda: (
            Agent(chat, output_type=NativeOutput(City), model_settings=few).run_sync("Name a city.").output
        ),
        "tools": lambda: Agent(chat, output_type=City, model_settings=few).run_sync("Name a city.").output,
    }


def llm_python(url: str, model: str) -> dict[str, Seen]:
    from llm.default_plugins.openai_models import Chat

    made = Chat("served", model_name=model, api_base=f"{url}/v1")
    made.supports_schema = True
    return {
        "text": lambda: made.prompt("Say hello.", key="none", max_tokens=5, stream=False).text(),
        "stream": lambda: made.prompt("Say hello.", key="none", max_tokens=5).text(),
        "schema": lambda: json.loads(made.prompt("A city.", key="none", schema=SCHEMA, stream=False).text())["city"],
    }


def lm_eval(url: str, model: str) -> dict[str, Seen]:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    from lm_eval import simple_evaluate

    place = Path(tempfile.mkdtemp())
    rows = [
        {"asked": "The capital of France is", "choices": ["Paris", "Rome"], "right": 0},
        {"asked": "The capital of Italy is", "choices": ["Paris", "Rome"], "right": 1},
    ]
    (place / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(place / "capitals.jsonl")}}}
    shared = {**data, "test_split": "test", "doc_to_text": "{{asked}}"}
    chosen = {**shared, "task": "chosen", "output_type": "multiple_choice"}
    chosen |= {"doc_to_choice": "{{choices}}", "doc_to_target": "right"}
    written = {**shared, "task": "written", "output_type": "generate_until", "doc_to_target": "{{choices[right]}}"}
    written |= {"generation_kwargs": {"until": ["."], "max_gen_toks": 5}, "metric_list": [{"metric": "exact_match"}]}

    def run(kind: str, path: str, task: Any, **more: Any) -> Any:
        told = {"base_url": f"{url}{path}", "model": model, "num_concurrent": 2}
        if kind == "local-completions":
            told["tokenizer_backend"] = "remote"
        found = simple_evaluate(model=kind, model_args=told, tasks=[task], bootstrap_iters=0, **more)
        return found["results"][task["task"]]["sample_len"] == len(rows) if found else False

    chat = "/v1/chat/completions"
    return {
        "text": lambda: run("local-chat-completions", chat, written, apply_chat_template=True),
        "scores": lambda: run("local-completions", "/v1/completions", chosen),
        "written on": lambda: run("local-completions", "/v1/completions", written),
    }


NODE = {"openai (npm)": "clients_openai.mjs", "ai-sdk (npm)": "clients_ai_sdk.mjs"}
PYTHON: dict[str, Callable[[str, str], dict[str, Seen]]] = {
    "openai": openai_python,
    "anthropic": anthropic_python,
    "ollama": ollama_python,
    "langchain-openai": langchain_openai,
    "litellm": litellm_python,
    "instructor": instructor_python,
    "pydantic-ai": pydantic_ai,
    "llm": llm_python,
    "lm_eval": lm_eval,
}


def _raises(run: Seen, kind: type[Exception]) -> bool:
    try:
        run()
    except kind:
        return True
    return False


def _one(client: str, url: str, model: str) -> None:
    """In the clients' environment: what one of them sees, as a line of JSON."""
    out = {}
    try:
        features = PYTHON[client](url, model)
    except ImportError as error:
        print(json.dumps({"": f"{error.name} is not installed"}))
        return
    for name, run in features.items():
        try:
            out[name] = "yes" if run() else "nothing"
        except Exception as error:
            out[name] = f"{type(error).__name__}: {str(error)[:150]}"
    print(json.dumps(out))


def _seen(command: list[str], **options: Any) -> dict[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"": (done.stderr or done.stdout).strip()[-200:] or "nothing came"}


def _node(folder: Path, url: str, model: str) -> dict[str, dict[str, str]]:
    """What the clients for Node see, where they are installed in `folder`."""
    found = {}
    given = {"URL": url, "MODEL": model, "SCHEMA": json.dumps(SCHEMA), "TOOL": json.dumps(TOOL)}
    for client, file in NODE.items():
        shutil.copy(HERE / file, folder)
        found[client] = _seen(["node", file], cwd=folder, env={**os.environ, **given})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model that is installed; SmolLM2 by default")
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-clients", help="where the clients are")
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "URL", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _one(*options.one)
        return
    from common import smollm2
    from server_common import Server

    source = options.model or smollm2()
    python = options.environment / "bin" / "python"
    table: dict[str, dict[str, str]] = {}
    with (
        tempfile.TemporaryDirectory() as place,
        Server(source, Path(place) / "log", "--precision", "fast", "--context", "2048", "--name", "served") as server,
    ):
        for client in PYTHON:
            table[client] = _seen([str(python), __file__, "--one", client, server.url, "served"])
        node = options.environment / "node"
        if shutil.which("node") and (node / "node_modules").is_dir():
            table |= _node(node, server.url, "served")
        else:
            print("node or its clients are not there: left out", file=sys.stderr)
    features = list(dict.fromkeys(name for seen in table.values() for name in seen if name))
    print(f"| client | {' | '.join(features)} |\n| --- |{' --- |' * len(features)}")
    for client, seen in table.items():
        cells = ["" if name not in seen else "yes" if seen[name] == "yes" else "no" for name in features]
        print(f"| {client} | {' | '.join(cells)} |")
    wrong = [(client, name, said) for client, seen in table.items() for name, said in seen.items() if said != "yes"]
    for client, name, said in wrong:
        print(f"{client}, {name or 'all'}: {said}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
