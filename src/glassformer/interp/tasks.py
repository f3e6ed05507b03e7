"""Small tasks made from templates, so that a model can be asked whether it has them.

Each example is a clean prompt and a corrupted one of as many tokens, the clean answer and the wrong one, which is what
the corrupted prompt asks for. Whether a prompt lines up depends on the tokenizer, so examples are drawn until enough
do. Knows words, how texts are cut into tokens, and which answer a trace prefers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glassformer.errors import TaskError, UsageError, near

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# The share of examples that a model must get right for its circuit to mean anything.
ENOUGH = 0.7

Encode = Callable[[str], Sequence[int]]
Row = tuple[str, str, str, str]  # clean, corrupted, answer, wrong

NAMES = "Mary John Tom James Anna Paul Kate Mark Lucy Peter Emma David Sarah Jack Alice Daniel Laura Adam Jane Luke"
PLACES = "store park school station office garden market library beach museum"
THINGS = "drink book ring letter ball key map pen gift ticket"
NOUNS = "key author boy girl dog teacher doctor farmer lawyer painter driver student letter window picture"
OTHERS = "cabinet table house road garden river church school tower bridge"
CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, Russia Moscow, England London, "
    "China Beijing, Egypt Cairo, Greece Athens, Austria Vienna, Poland Warsaw, Cuba Havana, Peru Lima, Norway Oslo, "
    "Ireland Dublin, "
    "Portugal Lisbon, Hungary Budapest, Turkey Ankara, Iran Tehran"
)
FORMS = (
    "The capital of {} is",
    "The capital city of {} is",
    "The largest city and capital of {} is",
    "The name of the capital of {} is",
    "As everybody knows, the capital of {} is",
    "We went to see the capital of {}, which is",
)
EVENTS = "war reign journey trial siege strike voyage crisis"
REPEATED = (
    "The secret word is {}. I repeat: the secret word is",
    "My answer is {}. Again, my answer is",
    "She said {}. Once more she said",
    "The password is {}. Remember, the password is",
    "The first word was {}. The second word, too, was",
    "They wrote {} on the board, and we also wrote",
    "He asked for {}, and his brother also asked for",
    "The name of the ship was {}. Yes, its name was",
)
WORDS = "apple river stone cloud table green music paper horse light window yellow winter silver summer garden bread"
CODE = "foo bar data items values name path list index total count result"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name, what: its name, and what the model must do, in one sentence.
        draw: a fresh example.
    """

    name: str
    what: str
    draw: Callable[[random.Random], Row]


def _names(r: random.Random) -> Row:
    a, b = r.sample(NAMES.split(), 2)
    place, thing = r.choice(PLACES.split()), r.choice(THINGS.split())
    start = f"When {a} and {b} went to the {place},"
    return f"{start} {b} gave a {thing} to", f"{start} {a} gave a {thing} to", f" {a}", f" {b}"


def _greater_than(r: random.Random) -> Row:
    event, century, decade = r.choice(EVENTS.split()), r.choice((15, 16, 17, 18)), r.randint(5, 8)
    start = f"The {event} lasted from the year"
    ends = r.choice(((str(decade + 1), str(decade - 3)), (f"{decade + 1}0", f"{decade - 3}0")))
    return f"{start} {century}{decade}2 to the year {century}", f"{start} {century}02 to the year {century}", *ends


def _agreement(r: random.Random) -> Row:
    noun, other = r.choice(NOUNS.split()), r.choice(OTHERS.split())
    where = r.choice(("near", "behind", "beside", "in front of"))
    return f"The {noun}s {where} the {other}", f"The {noun} {where} the {other}", " are", " is"


def _capitals(r: random.Random) -> Row:
    (a, x), (b, y) = (pair.split() for pair in r.sample(CAPITALS.split(", "), 2))
    start = r.choice(FORMS)
    return start.format(a), start.format(b), f" {x}", f" {y}"


def _induction(r: random.Random) -> Row:
    words = r.sample(WORDS.split(), 6)
    i, j = r.sample(range(5), 2)
    start = " " + " ".join(words)
    return f"{start} {words[i]}", f"{start} {words[j]}", f" {words[i + 1]}", f" {words[j + 1]}"


def _brackets(r: random.Random) -> Row:
    a, b, c, d = r.sample(CODE.split(), 4)
    start, end = f"{a} = {b}", f"{c}, {d}"
    return f"{start}[{end}", f"{start}({end}", "]", ")"


def _copying(r: random.Random) -> Row:
    a, b = r.sample(WORDS.split(), 2)
    form = r.choice(REPEATED)
    return form.format(a), form.format(b), f" {a}", f" {b}"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("names", "Of two names, say the one that has not been said twice (indirect object).", _names),
        Task("greater-than", "Let a war end after it began.", _greater_than),
        Task("agreement", "Let the verb agree with the noun, not with the nearest one.", _agreement),
        Task("capitals", "Say the capital of a country.", _capitals),
        Task("induction", "Say what followed the same word before.", _induction),
        Task("brackets", "Close the bracket that was opened last.", _brackets),
        Task("copying", "Say a word again.", _copying),
    )
}


def examples(name: str, encode: Encode, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Different examples of a task that line up, token for token, and whose answers are one token each.

    Args:
        encode: cuts a text into tokens.

    Raises:
        UsageError: for an unknown task, or when too few of its prompts line up in this tokenizer.
    """
    if name not in TASKS:
        raise UsageError(f"There is no task {name!r}; choose {', '.join(TASKS)}.{near(name, TASKS)}")
    if count < 1:
        raise UsageError(f"A task is tried on 1 example or more; {count} is not.")
    chooser, found = random.Random(f"{name}:{seed}"), {}
    for _ in range(60 * count):
        row = TASKS[name].draw(chooser)
        if row[0] not in found and _fits(row, encode):
            found[row[0]] = dict(zip(("clean", "corrupted", "answer", "wrong"), row, strict=True))
            if len(found) == count:
                return list(found.values())
    raise UsageError(
        f"Only {len(found)} different examples of {name!r} line up in this model's tokenizer (the two prompts as long, "
        f"each answer one token); {count} were asked for."
    )


def tried(
    name: str, encode: Encode, trace: Callable[[str], Trace], count: int
) -> tuple[list[dict[str, str]], list[dict[str, str]], float]:
    """Of the examples of a task that a model gets right, one half and the other; and the share that it gets right.

    Raises:
        UsageError: for an unknown task, or when too few of its prompts line up in this tokenizer.
        TaskError: when the model cannot do the task.
    """
    rows = examples(name, encode, count)
    right = solved(name, rows, [(trace(row["clean"]), trace(row["corrupted"])) for row in rows])
    half = (len(right) + 1) // 2
    return [rows[i] for i in right[:half]], [rows[i] for i in right[half:]], len(right) / count


def solved(name: str, rows: Sequence[dict[str, str]], pairs: Sequence[tuple[Trace, Trace]]) -> list[int]:
    """The examples that the model gets right: the answer's logit is above the wrong one's after the clean prompt, and
    by more than after the corrupted one.

    Raises:
        TaskError: when it gets fewer than seven in ten right, with its accuracy.
    """
    right = []
    for number, (row, (clean, corrupted)) in enumerate(zip(rows, pairs, strict=True)):
        answer, wrong = clean.token_id(row["answer"]), clean.token_id(row["wrong"])
        one, other = (float(x[answer] - x[wrong]) for x in (clean.logits(-1).double(), corrupted.logits(-1).double()))
        if one > max(0.0, other):
            right.append(number)
    if len(right) < ENOUGH * len(rows):
        raise TaskError(
            f"The model gets {len(right)} of {len(rows)} examples of {name!r} right ({len(right) / len(rows):.0%}), so "
            f"it does not have the task and there is no circuit to find; {ENOUGH:.0%} are needed."
        )
    return right


def _fits(row: Row, encode: Encode) -> bool:
    clean, corrupted, answer, wrong = row
    one, other = list(encode(clean)), list(encode(corrupted))
    return len(one) == len(other) and all(
        list(encode(prompt + end))[:-1] == ids
        for prompt, ids in ((clean, one), (corrupted, other))
        for end in (answer, wrong)
    )
