"""What belongs to one call of a gated model meets no other call: each answers as if alone."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate import call as calls
from dynprune.gate import forcing, gates, observing, recording, remove, set_prune_ratio
from dynprune.gate.call import Scope
from dynprune.host.modes import at_inference
from dynprune.host.outputs import tensors_of
from tests.gate.zoo_laws import error, gate_all, run, stir, stirred
from tests.zoo import ZOO

ROUNDING = 1e-5  # float32 sums in another order


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """No call, watcher or forced choice outlives a test."""
    yield
    # An entry that an interrupt left is dropped by the next call.
    assert calls._thread.watchers == ()
    assert not calls._thread.forced


class Mlp(nn.Module):
    def __init__(self, width=8, hidden=32):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, attention_mask=None):
        return x + self.fc2(torch.tanh(self.fc1(x)))


class Windowed(nn.Module):
    """Cuts its tokens into windows, which a block sees as rows of one batch."""

    def __init__(self):
        super().__init__()
        self.block = Mlp()

    def forward(self, x):
        return self.block(x.reshape(-1, 2, x.shape[-1])).reshape(x.shape)


class Whole(nn.Module):
    """Blocks that take a mask, one of windows, and a way past the root's own call."""

    def __init__(self):
        super().__init__()
        self.encoder, self.windows, self.head = Mlp(), Windowed(), Mlp()

    def features(self, x, attention_mask=None):
        return self.windows(self.encoder(x, attention_mask))

    def forward(self, x, attention_mask=None):
        return self.head(self.features(x, attention_mask), attention_mask)


def whole():
    torch.manual_seed(0)
    model = Whole().eval()
    gate_all(model, Example((torch.randn(2, 6, 8),)))
    assert len(gates(model)) == 3
    stir(model)
    return model


def answers(model, calls_):
    with torch.no_grad():
        return [model(*call) for call in calls_]


def different(count, *shape, seed=1):
    random = torch.Generator().manual_seed(seed)
    scale = torch.arange(1.0, count + 1)
    return [torch.randn(shape, generator=random) * s for s in scale]


def same(found, wanted, tolerance=ROUNDING):
    pairs = zip(found, wanted, strict=True)
    return all(torch.allclose(f, w, rtol=tolerance, atol=tolerance) for f, w in pairs)


# Threads and replicas


@pytest.mark.parametrize("name", ["vit", "swin", "bert"])
def test_threads_that_share_a_model_get_the_answers_of_calls_alone(name):
    model, example = stirred(name)
    asked = [example.batched(1 + seed % 3, seed=seed) for seed in range(12)]
    alone = [run(model, call) for call in asked]
    start = Barrier(4)

    def serve(number):
        start.wait()
        return [(i, run_as_is(model, asked[i])) for i in range(number, 12, 2)] * 2

    with at_inference(model), ThreadPoolExecutor(4) as pool:
        found = [pair for answers_ in pool.map(serve, [0, 1, 0, 1]) for pair in answers_]
    assert all(error(answer, alone[i]) < ROUNDING for i, answer in found)


def run_as_is(model, call):
    with torch.no_grad():
        return [t.double() for t in tensors_of(call.run(model)) if t.is_floating_point()]


def test_threads_that_share_a_compiled_model_get_the_answers_of_calls_alone():
    model = whole()
    asked = different(8, 3, 6, 8)
    alone = answers(model, [(x,) for x in asked])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert same(answers(compiled, [(asked[0],)]), alone[:1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: answers(compiled, [(x,)])[0], asked * 3))
    assert same(found, alone * 3)


def replica_of(model):
    """What `torch.nn.parallel.replicate` makes of a model, on one device."""
    copies = {m: m._replicate_for_data_parallel() for m in model.modules()}
    for module, twin in copies.items():
        for name, child in module._modules.items():
            setattr(twin, name, None if child is None else copies[child])
        for name, value in module._parameters.items():
            setattr(twin, name, None if value is None else value.view_as(value))
        for name, value in module._buffers.items():
            twin._buffers[name] = value
    return copies[model]


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_replicas_in_threads_get_the_answers_of_calls_alone(name):
    model, example = stirred(name)
    asked = [example.batched(2, seed=seed) for seed in range(6)]
    alone = [run(model, call) for call in asked]
    with at_inference(model):
        replicas = [replica_of(model) for _ in asked]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run_as_is, replicas, asked))
    assert all(error(f, a) < ROUNDING for f, a in zip(found, alone, strict=True))


def test_the_gradient_of_replicas_is_that_of_the_whole_batch():
    model = whole().train()
    x, target = torch.randn(4, 6, 8), torch.randn(4, 6, 8)
    (model(x) * target).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    halves = [replica_of(model) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda m, y: m(y), halves, x.chunk(2)))
    (torch.cat(parts) * target).sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert same(found, wanted, 1e-4)


# Nested and re-entered


class Around(nn.Module):
    """A model of somebody's own around another."""

    def __init__(self, inner):
        super().__init__()
        self.before, self.inner = Mlp(), inner

    def forward(self, x, attention_mask=None):
        return self.inner(self.before(x), attention_mask)


def test_a_gated_model_in_a_gated_model_keeps_its_own_choices():
    inner = whole()
    x = torch.randn(3, 6, 8)
    (alone,) = answers(inner, [(x,)])
    hooks = hooks_of(inner)
    outer = Around(inner).eval()
    gate_all(outer, Example((torch.randn(2, 6, 8),)))
    assert hooks_of(inner) == hooks
    assert {name for name in gates(outer) if "before" in name}
    assert same(answers(inner, [(x,)]), [alone])
    ratios = {gate.prune_ratio for gate in gates(inner).values()}
    set_prune_ratio(outer, 0.25)
    stir(outer)
    assert {gate.prune_ratio for gate in gates(inner).values()} == ratios
    with torch.no_grad():
        assert same([outer(x)], [inner(outer.before(x))])
    assert same(answers(inner, [(x,)]), [alone])
    remove(outer)
    assert same(answers(inner, [(x,)]), [alone])
    assert len(gates(inner)) == 3


def test_two_gated_models_in_a_plain_one_choose_apart():
    first, second = whole(), whole()
    stir(second, seed=9)
    both = nn.Sequential(first, second)
    x = torch.randn(3, 6, 8)
    with torch.no_grad():
        assert same([both(x)], [second(first(x))])


class Recursive(nn.Module):
    """Calls itself in the middle of its own call, on another batch."""

    def __init__(self):
        super().__init__()
        self.block = Mlp()

    def forward(self, x, depth: int = 0):
        hidden = torch.tanh(self.block.fc1(x))
        if depth:
            hidden = hidden + self(x[1:2] * 2, depth - 1).mean()
        return self.block.fc2(hidden)


def test_a_module_that_calls_itself_keeps_the_choice_of_the_call_around():
    torch.manual_seed(0)
    model = Recursive().eval()
    gate_all(model, Example((torch.randn(2, 6, 8),)))
    stir(model)
    x = torch.randn(3, 6, 8)
    with torch.no_grad():
        inner = model(x[1:2] * 2).mean()
        with recording() as seen:
            found = model(x, 1)
        outer, own = next(iter(seen.values()))
        assert not torch.equal(outer.selection.index[0], own.selection.index[0])
        by_hand = torch.tanh(x @ model.block.fc1.weight.t() + model.block.fc1.bias) + inner
        (gate,) = gates(model).values()
        mask = outer.selection.keep * outer.output.factor
        wanted = ((by_hand - gate.mean) * mask[:, None]) @ model.block.fc2.weight.t()
        wanted = wanted + model.block.fc2.bias + model.block.fc2.offset
    assert same([found], [wanted])


# What a call that fails leaves


class UsersError(Exception):
    """A user's own."""


def failing(module, failure, *, before):
    """Fail once at this module, before or after it ran."""

    def fail(*_):
        handle.remove()
        raise failure

    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(fail)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("place", ["", "encoder", "encoder.fc2", "windows.block", "head"])
@pytest.mark.parametrize("kind", [UsersError, KeyboardInterrupt, SystemExit])
def test_a_call_that_fails_leaves_nothing_for_the_next(kind, place, before):
    model = whole()
    x, y = torch.randn(2, 6, 8), torch.randn(3, 6, 8)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 2:] = 0
    parts = [model, model.encoder, model.windows, model.windows.block]
    asked = [x, x * 2, x - 1, x[:, :2]]
    alone = [answers(part, [(a,)])[0] for part, a in zip(parts, asked, strict=True)]
    for order in (parts, parts[::-1]):
        for part in order:
            failing(model.get_submodule(place), kind(), before=before)
            with pytest.raises(kind):
                answers(model, [(y[:2] if part is model else y, mask if part is model else None)])
            place_of = parts.index(part)
            assert same(answers(part, [(asked[place_of],)]), [alone[place_of]])
    assert calls._thread.calls == ()


def test_a_hook_of_the_users_own_before_ours_leaves_nothing_behind():
    model = whole()
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0, prepend=True)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(1, 6, 8))
    handle.remove()
    assert calls._thread.calls == ()


# Parts that are called alone


def test_a_part_called_alone_answers_as_within_the_whole_whatever_ran_before():
    model = whole()
    x, mask = torch.randn(3, 6, 8), torch.ones(3, 6, dtype=torch.long)
    mask[0, 3:] = 0
    with torch.no_grad():
        first = model.encoder(x, mask)
        plain = model.encoder(x)
        model(x[:2], 1 - mask[:2])
        assert same([model.encoder(x, mask)], [first])
        assert same([model.encoder(x)], [plain])
        assert not same([first], [plain])


def test_a_way_past_the_call_of_the_root_computes_what_the_root_does():
    model = whole()
    x = torch.randn(3, 6, 8)
    with torch.no_grad():
        assert same([model.head(model.features(x))], [model(x)])


def test_a_consumer_that_runs_before_its_producer_says_so():
    model = whole()
    with pytest.raises(GateError, match="outside a call of its model"):
        model.encoder.fc2(torch.randn(1, 4, 32))

    class Wrong(Mlp):
        def forward(self, x):
            return self.fc2(x.repeat(1, 1, 4))

    model.encoder.forward = Wrong.forward.__get__(model.encoder)
    with pytest.raises(GateError, match="has not selected neurons in this call"):
        model.encoder(torch.randn(1, 4, 8))


# Training


def checkpointed(model, part, *, reentrant):
    """Put something around a module that runs it again in the backward pass."""
    module = model.get_submodule(part)

    class Saved(nn.Module):
        def forward(self, *args):
            return checkpoint(module, *args, use_reentrant=reentrant)

    setattr(model.get_submodule(part.rpartition(".")[0]), part.rpartition(".")[2], Saved())


def gradients(model, *call, of=None):
    parameters = list(model.parameters()) if of is None else of
    for parameter in parameters:
        parameter.grad = None
    (model(*call) ** 2).sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def same_gradients(found, wanted):
    """The same parameters have one, and it is the same but for the order of sums."""
    assert [g is None for g in found] == [g is None for g in wanted]
    return same(*([g for g in every if g is not None] for every in (found, wanted)), 1e-4)


def masked_call():
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return torch.randn(3, 6, 8, requires_grad=True), mask


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["encoder", "windows", "windows.block", "head"])
def test_checkpointing_a_module_gives_the_same_gradients(part, reentrant):
    model, call = whole().train(), masked_call()
    parameters, wanted = list(model.parameters()), gradients(model, *call)
    checkpointed(model, part, reentrant=reentrant)
    assert same_gradients(gradients(model, *call, of=parameters), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["encoder", "windows", "windows.block", "head"])
def test_checkpointing_inside_a_module_gives_the_same_gradients(part, reentrant):
    model, call = whole().train(), masked_call()
    wanted = gradients(model, *call)
    inner = model.get_submodule(part).forward
    again = lambda *args: checkpoint(inner, *args, use_reentrant=reentrant)  # noqa: E731
    model.get_submodule(part).forward = again
    assert same_gradients(gradients(model, *call), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_in_a_checkpoint_gives_the_same_gradients(reentrant):
    model, call = whole().train(), masked_call()
    parameters, wanted = list(model.parameters()), gradients(model, *call)
    checkpointed(model, "windows.block", reentrant=reentrant)
    checkpointed(model, "windows", reentrant=reentrant)
    checkpointed(model, "encoder", reentrant=not reentrant)
    assert same_gradients(gradients(model, *call, of=parameters), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_calls_that_wait_for_one_backward_pass_are_told_apart(reentrant):
    model, first, second = whole().train(), masked_call(), masked_call()
    second = (second[0][:2], 1 - first[1][:2])
    model.zero_grad()

    class Both(nn.Module):
        def forward(self):
            return torch.cat([model(*first), model(*second)])

    parameters = list(model.parameters())
    wanted = gradients(Both(), of=parameters)
    checkpointed(model, "windows.block", reentrant=reentrant)
    assert same_gradients(gradients(Both(), of=parameters), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_part_that_is_checkpointed_outside_every_call_is_a_call_of_its_own(reentrant):
    model, (x, mask) = whole().train(), masked_call()

    def alone(x, mask):
        return model.encoder(x, mask)

    parameters = list(model.parameters())
    wanted = gradients(alone, x, mask, of=parameters)

    def again(x, mask):
        return checkpoint(model.encoder, x, mask, use_reentrant=reentrant)

    assert same_gradients(gradients(again, x, mask, of=parameters), wanted)


def test_a_call_that_is_kept_for_a_backward_pass_keeps_nothing_that_was_chosen():
    model, call = whole().train(), masked_call()
    kept = []
    inner = model.windows.forward

    def again(*args):
        y = checkpoint(inner, *args, use_reentrant=True)
        kept.extend(y.grad_fn._dynprune_calls.values())
        return y

    model.windows.forward = again
    model(*call)
    assert [c.path for c in kept] == ["windows"]
    assert not any(c.selections or c.known or c.frame for c in kept[0].chain())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "swin", "wav2vec2", "t5_encoder"])
def test_the_checkpointing_of_transformers_gives_the_same_gradients(name, reentrant):
    model, example = stirred(name)
    model.config.apply_spec_augment = False  # draws from another generator
    call = example.batched(3, seed=5)
    model.train()

    def found():
        torch.manual_seed(0)
        model.zero_grad()
        tensors = [t for t in tensors_of(call.run(model)) if t.is_floating_point()]
        sum((t**2).mean() for t in tensors).backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    wanted = found()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert same_gradients(found(), wanted)


# Copies, hooks and what watches


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    flags = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        name: [len(getattr(module, kind)) for kind in (*kinds, *flags)]
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", ["vit", "swin", "t5"])
def test_taking_the_gates_out_takes_every_hook_out_and_leaves_those_of_the_user(name):
    model, example = ZOO[name].made()
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: None)
    before = hooks_of(model)
    gate_all(model, example)
    assert hooks_of(model) != before
    run(model, example)
    remove(model)
    assert hooks_of(model) == before


def test_a_copy_has_a_scope_of_its_own_and_its_gates_come_out_alone():
    model = whole()
    twin = copy.deepcopy(model)
    x = torch.randn(3, 6, 8)
    (before,) = answers(model, [(x,)])
    assert same(answers(twin, [(x,)]), [before])
    scopes = {g.members.scope for m in (model, twin) for g in gates(m).values()}
    assert len(scopes) == 2
    hooks = hooks_of(model)
    remove(twin)
    assert not any(count for counts in hooks_of(twin).values() for count in counts)
    assert hooks_of(model) == hooks
    assert same(answers(model, [(x,)]), [before])


def test_watchers_see_their_own_thread_alone():
    model = whole()
    seen = []
    with observing(seen.append), ThreadPoolExecutor(1) as pool:
        pool.submit(answers, model, [(torch.randn(2, 6, 8),)]).result()
        assert not seen
        answers(model, [(torch.randn(2, 6, 8),)])
    assert len(seen) == 3


def test_what_is_forced_is_forced_inside_the_block_alone():
    model = whole()
    x = torch.randn(2, 6, 8)
    (free,) = answers(model, [(x,)])
    gate = gates(model.encoder)[next(iter(gates(model.encoder)))]
    with recording() as first:
        answers(model, [(x,)])
    flipped = calls.GateOutput(-first[gate.name][0].output.scores, torch.ones(2, 32))
    with forcing({gate.members: flipped}):
        assert not same(answers(model, [(x,)]), [free])
    assert same(answers(model, [(x,)]), [free])


def test_functional_calls_compute_with_the_weights_that_they_are_given():
    model = whole()
    x = torch.randn(3, 6, 8)
    other = {
        name: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    twin = copy.deepcopy(model)
    twin.load_state_dict(other)
    with torch.no_grad():
        found = torch.func.functional_call(model, other, (x,))
    assert same([found], answers(twin, [(x,)]))


def test_calls_of_a_scope_that_is_closed_are_not_noted():
    module, scope = Mlp(), Scope()
    scope.watch(module, "")
    seen = []
    module.fc1.register_forward_hook(lambda *_: seen.append(len(calls._thread.calls)))
    module(torch.randn(1, 8))
    scope.close()
    module(torch.randn(1, 8))
    assert seen == [1, 0]
    with pytest.raises(GateError, match="outside a call"):
        scope.current()


def test_a_call_made_again_chooses_anew_and_leaves_the_first_as_it_was():
    model = whole()
    x = torch.randn(2, 6, 8)
    kept = []

    def again(*_):
        scope = next(iter(gates(model).values())).members.scope
        around = scope.current()
        before = dict(around.selections)
        with around.again():
            assert not scope.current().selections
            kept.append(model.head.forward(x))
        assert around.selections == before

    handle = model.head.register_forward_hook(again)
    with torch.no_grad():
        model(x)
        handle.remove()
        assert same(kept, [model.head(x)])


def test_ratios_of_one_model_leave_its_copy_alone():
    model = whole()
    twin = copy.deepcopy(model)
    set_prune_ratio(twin, 0.0)
    assert {gate.prune_ratio for gate in gates(model).values()} == {0.5}
