"""Answers held to 500 schemas of our own making: none may be invalid; a schema is held to, or refused by its reason."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import Any

from common import arguments, report, skip, smollm2, table, verdict
from schemas import REFUSED, Maker


def invalid(text: str, schema: dict[str, Any]) -> str | None:
    """Why an answer does not follow its schema; None where it does."""
    import jsonschema

    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON ({error})"
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    found = jsonschema.exceptions.best_match(checker.iter_errors(value))
    return None if found is None else f"{found.message[:200]} at {list(found.absolute_path)}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--answers", type=int, default=2, help="of the model to each schema")
    parser.add_argument("--walks", type=int, default=4, help="answers drawn from what is allowed, without a model")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--precision", default="fast")
    options = parser.parse_args()
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        skip("jsonschema is not installed; make test installs it")
    import torch

    import glassformer as gf
    from glassformer.errors import UsageError
    from glassformer.generate.constraints import Constraint, Grammars
    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request
    from glassformer.generate.settings import Sampling

    torch.set_num_threads(options.threads)
    path = smollm2()
    model = gf.load("smollm2", device="cpu", dtype="float32")
    grammars = Grammars(model.tokenizer, model.config.vocab_size)
    maker, start = Maker(0), time.process_time()
    held: list[tuple[dict[str, Any], Constraint]] = []
    refused: Counter[str] = Counter()
    walked, unended, wrong = 0, 0, []
    generator = random.Random(0)
    for _ in range(options.schemas):
        schema = maker.schema()
        try:
            constraint = Constraint.schema(schema)
            matcher = grammars.matcher(constraint)
        except UsageError as error:
            refused[str(error).partition("schema: ")[2][:60]] += 1
            continue
        held.append((schema, constraint))
        for _ in range(options.walks):
            matcher = grammars.matcher(constraint)
            text = walk(matcher, model.tokenizer, generator, options.tokens)
            if text is None:
                unended += 1
            else:
                walked += 1
                if (why := invalid(text, schema)) is not None:
                    wrong.append((schema, text, why))
    compiled = time.process_time() - start
    answered = cut = 0
    engine = Engine(
        model.transformer, model.tokenizer, precision=options.precision, source=path, slots=32, capacity=512
    )
    engine.wait()
    prompt = tuple(model.encode("An example of what follows the schema, as JSON:\n"))
    asked = [
        (schema, engine.submit(Request(prompt, options.tokens, Sampling(temperature=1.0, seed=number), constraint=c)))
        for number, (schema, c) in enumerate(held * options.answers)
    ]
    for schema, handle in asked:
        events = list(handle)
        if events[-1].finish == "length":
            cut += 1
            continue
        answered += 1
        text = "".join(event.text for event in events)
        if (why := invalid(text, schema)) is not None:
            wrong.append((schema, text, why))
    engine.close()
    for schema, text, why in wrong[:10]:
        print(f"{why}\n  {json.dumps(schema, ensure_ascii=False)[:600]}\n  {text[:300]}")
    rows = [
        ("schemas", options.schemas, ""),
        ("held to", len(held), ""),
        ("refused by a reason", sum(refused.values()), ""),
        ("answers of SmolLM2 that ended", answered, ""),
        (f"cut at {options.tokens} tokens", cut, ""),
        ("answers drawn from what is allowed, without a model", walked, ""),
        ("invalid answers", len(wrong), verdict(len(wrong), most=0)),
        ("processor seconds for compiling, walking and checking", f"{compiled:.0f}", ""),
    ]
    notes = "The refused, by reason: " + "; ".join(f"{reason} ({n})" for reason, n in refused.most_common(12)) + "."
    notes += f" Asked for on purpose and not there: {', '.join(REFUSED)}."
    report("conformance", "Answers of a form: conformance", table(("what", "figure", "asked"), rows), options, notes)


LEADING = ('"', "]", "}", ",", '",', '"]', '"}', "a", "1", "0", "-", ":", "T", "Z", ".")


def walk(matcher: Any, tokenizer: Any, generator: random.Random, most: int) -> str | None:
    """A text drawn from what a constraint allows, with a liking for what leads on; None where it does not end."""
    liked = [id for text in LEADING for id in tokenizer.encode(text, bos=False)[:1]]
    ids: list[int] = []
    while not matcher.stopped:
        allowed = matcher.allowed()
        ends = any(bool(allowed[id]) for id in tokenizer.stop_ids)
        found = allowed.numpy().nonzero()[0]  # of torch it shares out a microsecond's work among threads
        if ends and (len(found) <= len(tokenizer.stop_ids) or generator.random() < 0.5):
            break
        few = [id for id in liked if bool(allowed[id])] if generator.random() < 0.5 else []
        taken = generator.choice(few) if few else int(found[generator.randrange(len(found))])
        if taken in tokenizer.stop_ids:
            break
        ids.append(taken)
        matcher.accept(taken)
        if len(ids) > most:
            return None
    return str(tokenizer.decode(ids))


if __name__ == "__main__":
    main()
