"""The engine: what streams out equals what the transformer says, whoever shares the steps."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from glassformer.errors import ServerError, TextError, UsageError
from glassformer.generate import engine as engine_module
from glassformer.generate.drafting import DraftModel, NgramLookup
from glassformer.generate.engine import Engine, SlowWarning
from glassformer.generate.request import Request, RequestHandle
from glassformer.generate.runners import EagerRunner
from glassformer.generate.settings import GREEDY, Sampling
from glassformer.kernels import infer_abi
from glassformer.model import Transformer
from tests.generate.engines import CONFIG, Letters, Reference, ids_of, prompts


def test_greedy_equals_the_model_alone(engine, reference):
    for prompt in prompts(4):
        steps = list(engine.generate(Request(tuple(prompt), max_tokens=12, stop_ids=frozenset())))
        assert reference.agrees(prompt, ids_of(steps), 12)
        assert [s.finish for s in steps] == [None] * 11 + ["length"]
        assert {s.precision for s in steps} == {"float32" if reference.kind == "torch" else reference.kind}


def test_many_requests_share_the_engine_and_none_is_changed_by_it(engine, reference):
    texts = prompts(11, seed=2)
    handles = [engine.submit(Request(tuple(p), max_tokens=5 + i, stop_ids=frozenset())) for i, p in enumerate(texts)]
    for i, (prompt, handle) in enumerate(zip(texts, handles, strict=True)):
        assert reference.agrees(prompt, ids_of(handle), 5 + i)
    assert (engine.active, engine.waiting) == (0, 0)


def test_other_threads_keep_their_number_of_torch_threads(make):
    before = torch.get_num_threads()
    seen: list[int] = []
    engine = make(slots=1)
    list(engine.generate(Request((1, 2), max_tokens=2)))
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_a_prefix_that_is_there_is_not_read_again(engine, reference):
    first = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 3
    a = engine.submit(Request(tuple(first), max_tokens=4, stop_ids=frozenset()))
    assert reference.agrees(first, ids_of(a), 4)
    assert a.cached == 0
    longer = [*first, *reference.greedy(first, 4), 17, 18]
    b = engine.submit(Request(tuple(longer), max_tokens=4, stop_ids=frozenset()))
    assert reference.agrees(longer, ids_of(b), 4)
    assert b.cached == len(first) + 3  # the last token of the first answer was never read
    same = engine.submit(Request(tuple(first), max_tokens=4, stop_ids=frozenset()))
    assert reference.agrees(first, ids_of(same), 4)
    assert same.cached == len(first) - 1  # the last one is needed for its logits
    other = engine.submit(Request((5, 5, 5), max_tokens=2, stop_ids=frozenset()))
    assert reference.agrees([5, 5, 5], ids_of(other), 2)


def test_a_prefix_in_a_busy_slot_is_copied(make, reference):
    engine = make(slots=2)
    used = [engine.submit(Request((i, 2, 3), max_tokens=3, stop_ids=frozenset())) for i in (7, 8)]  # of both slots
    assert [len(ids_of(one)) for one in used] == [3, 3]
    shared = list(range(1, 31))
    long = engine.submit(Request(tuple(shared), max_tokens=90, stop_ids=frozenset()))
    events = iter(long)
    first = next(events)
    second = engine.submit(Request((*shared, 40), max_tokens=3, stop_ids=frozenset()))
    assert reference.agrees([*shared, 40], ids_of(second), 3)
    assert second.cached >= 29
    assert reference.agrees(shared, ids_of([first, *events]), 90)  # and is not changed by being copied


def test_seeds_reproduce_whatever_shares_the_steps(engine):
    settings = Sampling(temperature=1.5, top_p=0.9, seed=11, frequency_penalty=0.3, repetition_penalty=1.1)
    alone = ids_of(engine.generate(Request((1, 2, 3), max_tokens=20, sampling=settings, stop_ids=frozenset())))
    noise = [engine.submit(Request(tuple(p), max_tokens=9, stop_ids=frozenset())) for p in prompts(6)]
    again = ids_of(engine.generate(Request((1, 2, 3), max_tokens=20, sampling=settings, stop_ids=frozenset())))
    assert alone == again
    for handle in noise:
        handle.text()


@pytest.mark.parametrize("kind", ["lookup", "draft", "wrong"])
def test_speculation_changes_nothing_of_a_greedy_answer(engine, model, reference, kind):
    class Wrong:
        def draft(self, ids, most, sampling, generator):
            return [49] * most

    for prompt in [[1, 2, 3] * 4, *prompts(2)]:
        drafter = {"lookup": NgramLookup, "draft": lambda: DraftModel(EagerRunner(model)), "wrong": Wrong}[kind]()
        request = Request(tuple(prompt), max_tokens=17, stop_ids=frozenset(), drafter=drafter, drafts=4)
        assert reference.agrees(prompt, ids_of(engine.generate(request)), 17)


class Anything:
    """Drafts whatever comes to its mind."""

    def draft(self, ids, most, sampling, generator):
        return [int(i) for i in torch.randint(50, (most,))]


@pytest.mark.parametrize("kind", ["lookup", "anything", "draft", "same"])
def test_speculation_changes_nothing_of_a_drawn_answer(engine, model, reference, kind):
    """Token by token, with filters, and penalties that look at what was answered."""
    torch.manual_seed(8)
    other = Transformer(CONFIG).requires_grad_(False)
    drafters = {
        "lookup": NgramLookup,
        "anything": Anything,
        "draft": lambda: DraftModel(EagerRunner(other)),
        "same": lambda: DraftModel(EagerRunner(model)),
    }
    for seed in range(4):
        for more in ({}, {"top_k": 5, "repetition_penalty": 1.3, "frequency_penalty": 2.0, "logit_bias": {3: 1.5}}):
            sampling = Sampling(temperature=2.0, seed=seed, **more)
            asked = Request((5, 9, 3, 5, 9), 12, sampling, stop_ids=frozenset())
            plain = ids_of(engine.generate(asked))
            assert len(set(plain)) > 2
            drafted = replace(asked, drafter=drafters[kind](), drafts=4)
            assert ids_of(engine.generate(drafted)) == plain


def test_drafts_that_are_right_save_steps_and_wrong_ones_end(make, model, monkeypatch):
    class Wrong:
        asked = 0

        def draft(self, ids, most, sampling, generator):
            self.asked += 1
            return [49] * most

    engine, steps = make(slots=1), []
    list(engine.generate(Request((1,), 1)))
    real = engine._runner.forward
    monkeypatch.setattr(engine._runner, "forward", lambda *a: (steps.append(len(a[0])), real(*a))[1])
    asked = Request((1, 2, 3), 100, stop_ids=frozenset())
    plain = ids_of(engine.generate(asked))
    assert len(steps) == 100
    steps.clear()
    wrong = Wrong()
    assert ids_of(engine.generate(replace(asked, drafter=wrong))) == plain
    assert wrong.asked < 12  # it is left alone for longer and longer
    steps.clear()
    repeating = Request((1, 2, 3, 4) * 8, 90, Sampling(temperature=0, logit_bias={7: 100.0}), stop_ids=frozenset())
    assert set(ids_of(engine.generate(replace(repeating, drafter=NgramLookup())))) == {7}
    assert len(steps) < 90 / 3


def test_min_tokens_and_the_ids_that_end_an_answer(engine, reference):
    plain = reference.greedy([1, 2, 3], 12)
    end = next(i for i in plain[:6] if i not in (49,))
    first = plain.index(end)
    ended = list(engine.generate(Request((1, 2, 3), 12, Sampling(temperature=0, stop_token_ids={end}))))
    assert ids_of(ended) == plain[: first + 1]
    assert (ended[-1].finish, ended[-1].text) == ("stop", "")
    later = Sampling(temperature=0, stop_token_ids={end}, min_tokens=first + 3)
    answer = ids_of(engine.generate(Request((1, 2, 3), 12, later)))
    assert len(answer) >= first + 3
    assert end not in answer[: first + 3]
    own = Request((1, 2, 3), 12, GREEDY, stop_ids=frozenset({end}))
    assert len(ids_of(engine.generate(own))) == first + 1
    on = replace(own, sampling=Sampling(temperature=0, ignore_eos=True))
    assert ids_of(engine.generate(on)) == plain
    with pytest.raises(UsageError, match="stop_token_ids names token 50; this vocabulary has 50."):
        engine.submit(Request((1,), 1, Sampling(stop_token_ids={50})))


def test_logprobs_are_the_model_s_own(engine, reference):
    prompt = [3, 1, 4, 1, 5]
    steps = list(engine.generate(Request(tuple(prompt), max_tokens=3, logprobs=5, stop_ids=frozenset())))
    ids = list(prompt)
    for step in steps:
        expected = torch.log_softmax(reference.logits(ids).double(), 0)
        assert step.id is not None
        assert step.logprob is not None
        assert step.logprob.logprob == pytest.approx(float(expected[step.id]), abs=1e-4)
        assert [t.id for t in step.top] == expected.topk(5).indices.tolist()
        ids.append(step.id)


def test_cancelled_requests_stop_and_free_their_slot(engine):
    with engine._wake:  # so that none ends before it is cancelled
        handles = [engine.submit(Request((i, 2, 3), max_tokens=120, stop_ids=frozenset())) for i in range(5)]
        for handle in handles:
            handle.cancel()
    for handle in handles:
        steps = list(handle)
        assert steps[-1].finish == "cancelled"
    after = list(engine.generate(Request((1, 2), max_tokens=2, stop_ids=frozenset())))
    assert len(after) == 2
    for _ in engine.generate(Request((1, 2), max_tokens=100, stop_ids=frozenset())):
        break  # leaving the loop cancels
    list(engine.generate(Request((1, 2), max_tokens=1)))
    assert engine.active == 0


def test_an_answer_ends_where_the_capacity_does(make):
    steps = list(make(slots=1, capacity=20).generate(Request(tuple(range(15)), stop_ids=frozenset())))
    assert len(steps) == 5
    assert steps[-1].finish == "length"


def test_a_tap_gets_the_transformer_itself_and_steps_of_its_own(engine, model):
    class Zero:
        reads: frozenset[str] = frozenset()
        writes = frozenset({"blocks.0.mlp.out"})

        def __call__(self, site, x, where):
            return torch.zeros_like(x)

    request = Request((1, 2, 3), max_tokens=6, stop_ids=frozenset())
    changed = ids_of(engine.generate(request, tap=Zero()))
    ids = [1, 2, 3]
    for _ in range(6):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), tap=Zero())[0, -1].argmax()))
    assert changed == ids[3:]


class Scale:
    """Halves what one head gives."""

    reads: frozenset[str] = frozenset()
    writes = frozenset({"blocks.1.attn.z"})

    def __call__(self, site, x, where):
        out = x.clone()
        out[:, :, 2] *= 0.5
        return out


def test_a_step_is_over_when_all_of_its_tokens_are_told():
    told: list[int | None] = []
    with Engine(Transformer(CONFIG), Letters(), use_native=False, slots=3, capacity=64) as engine:
        engine.stepped = lambda: told.append(None)
        over = threading.Barrier(4)

        def tell(who: int, event) -> None:
            told.append(who)
            if event.finish is not None:
                threading.Thread(target=over.wait).start()

        with engine._wake:  # so that they begin together
            for who in range(3):
                asked = Request((1, 2, 3), 5, stop_ids=frozenset())
                engine.submit(asked, lambda event, who=who: tell(who, event))
        over.wait(60)
    assert told[:20] == [0, 1, 2, None] * 5


def test_a_short_prompt_among_many_answers_has_its_first_token_in_a_step_of_its_own(monkeypatch):
    model, many = Transformer(CONFIG), 6
    sizes: list[int] = []
    real = EagerRunner.forward

    def forward(self, tokens, slots, positions, out):
        sizes.append(len(tokens))
        if len(sizes) == 4:  # while they answer
            late.append(engine.submit(Request((5, 6, 7), 3, stop_ids=frozenset())))
        return real(self, tokens, slots, positions, out)

    late: list[RequestHandle] = []
    with Engine(model, use_native=False, slots=many + 2, capacity=64) as engine:
        monkeypatch.setattr(EagerRunner, "forward", forward)
        with engine._wake:
            others = [engine.submit(Request((i, 2), 20, stop_ids=frozenset())) for i in range(many)]
        told = [ids_of(one) for one in others]
        told.append(ids_of(late[0]))
        assert sizes[:9] == [2 * many, many, many, many, 3, many + 1, many + 1, many, many]
        monkeypatch.undo()
        alone = [engine.generate(replace(one.request)) for one in (*others, late[0])]
        assert told == [ids_of(one) for one in alone]


def test_a_recurrence_is_read_on_or_from_the_beginning_and_never_rewound():
    from glassformer.generate.slots import Slots

    slots = Slots(2, 1, rewinds=False)
    slots.holds(0, range(30))
    assert slots.place([*range(30), 40], [0, 1], {}).have == 30
    slots.holds(0, range(30))
    assert slots.place([*range(25), 40], [0, 1], {}).have == 0


def test_edited_answers_share_the_engine_with_others(engine, model, reference):
    """Each is what the edited transformer says without a cache; the others are not changed by it."""
    edited = [Request((i, 2, 3, 4), 9, stop_ids=frozenset(), tap=Scale(), drafter=NgramLookup(2, 1)) for i in range(3)]
    plain = [Request((i, 2, 3, 4), 9, stop_ids=frozenset()) for i in range(3)]
    handles = [engine.submit(one) for pair in zip(edited, plain, strict=True) for one in pair]
    answers = [(ids_of(edit), ids_of(free)) for edit, free in zip(handles[::2], handles[1::2], strict=True)]
    for i, (edit, free) in enumerate(answers):
        assert reference.agrees([i, 2, 3, 4], free, 9)
        ids = [i, 2, 3, 4]
        for _ in range(9):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids]), tap=Scale(), last=True)[0, -1].argmax()))
        assert edit == ids[4:]
    assert all(handle.cached == 0 for handle in handles[::2])


def test_an_edit_that_fails_ends_its_own_answer_alone(engine, reference):
    class Broken(Scale):
        def __call__(self, site, x, where):
            raise ValueError("no")

    other = engine.submit(Request((1, 2), 30, stop_ids=frozenset()))
    with pytest.raises(ValueError, match="no"):
        ids_of(engine.submit(Request((1, 2), 5, tap=Broken())))
    assert reference.agrees([1, 2], ids_of(other), 30)
    assert engine.active == 0


def test_prefixes_are_kept_within_a_budget_when_their_slots_are_taken(make, reference):
    a, b, c = ([i] * 40 for i in (1, 2, 3))
    bytes_a_slot = 128 * 2 * 2 * 2 * 8 * 4  # tokens × layers × (keys, values) × heads × width × float32

    def cached(engine: Engine, prompt: list[int]) -> int:
        handle = engine.submit(Request((*prompt, 9), 3, stop_ids=frozenset()))
        assert reference.agrees([*prompt, 9], ids_of(handle), 3)
        return handle.cached

    none, three = make(slots=1), make(slots=1, prefix_cache=3 * bytes_a_slot)
    assert [cached(none, p) for p in (a, b, c, a, b)] == [0] * 5
    assert [cached(three, p) for p in (a, b, c, a, b, c, a)] == [0, 0, 0, 40, 40, 40, 40]
    assert [cached(three, [i] * 40) for i in (4, 5, 6, 7)] == [0] * 4  # what was not wanted for longest makes room
    assert cached(three, a) == 0


def test_a_bad_request_is_refused_and_a_closed_engine_takes_none(engine):
    with pytest.raises(TextError, match="The prompt holds no token; give at least one word."):
        engine.submit(Request(()))
    engine.close()
    with pytest.raises(ServerError, match="The engine is closed"):
        engine.submit(Request((1,)))


def test_unknown_precisions_are_refused(model):
    with pytest.raises(UsageError, match="Precision 'int3' is unknown; choose exact, fast, float32"):
        Engine(model, precision="int3")


def test_an_error_of_a_step_reaches_its_requests_and_the_engine_goes_on(make, monkeypatch):
    engine = make(slots=2)
    assert len(list(engine.generate(Request((3,), max_tokens=1)))) == 1  # the runner is in place now
    real = engine._runner.forward
    monkeypatch.setattr(engine._runner, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(engine.generate(Request((1, 2), max_tokens=3)))
    monkeypatch.setattr(engine._runner, "forward", real)
    assert len(list(engine.generate(Request((1, 2), max_tokens=3, stop_ids=frozenset())))) == 3


def test_without_a_compiler_it_answers_and_says_what_is_slower(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(infer_abi.LIBRARY, "_loaded", {})
    monkeypatch.setattr(infer_abi.LIBRARY, "_failed", {})
    with pytest.warns(SlowWarning, match="through torch in float32 instead, several times slower"):
        made = Engine(model, precision="int8")
    with made as engine:
        assert engine.wait(10)
        steps = list(engine.generate(Request((1, 2), max_tokens=5, stop_ids=frozenset())))
        assert ids_of(steps) == Reference(model, "torch").greedy([1, 2], 5)
        assert {step.precision for step in steps} == {"float32"}  # stated as it is, not as it was asked
        assert engine.path == "eager"
        assert "no C++ compiler" in str(engine.note)
        assert "several times slower" in str(engine.note)


def test_answers_begin_before_the_library_is_compiled_and_go_on_after(model, monkeypatch):
    """The native path comes in the middle of an answer, which it does not change."""
    may_build, half = threading.Event(), threading.Event()
    real = engine_module.NativeModel.from_transformer

    def slow(*args, **kwargs):
        assert may_build.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(engine_module.infer_abi, "compiled", lambda: False)
    monkeypatch.setattr(engine_module.NativeModel, "from_transformer", slow)
    with Engine(model, slots=2) as engine:
        assert engine.path == "eager"
        got: list[int] = []

        def on_event(step) -> None:
            got.append(step.id)
            if len(got) == 10:
                may_build.set()
                assert engine.wait(120)
            if step.finish:
                half.set()

        engine.submit(Request((4, 5, 6), max_tokens=30, stop_ids=frozenset()), on_event)
        assert half.wait(120)
        assert engine.path.startswith("native")
        assert got == Reference(model, "torch").greedy([4, 5, 6], 30)
