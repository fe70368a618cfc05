"""What wraps a model for many devices is looked through, or said what to do about."""

import pytest
import torch
from torch import nn

import dynprune
from dynprune.errors import UsageError
from dynprune.gate import is_gated
from dynprune.host.wrappers import check_whole, unwrapped


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


WRAPPERS = [nn.DataParallel, distributed, compiled, lambda m: nn.DataParallel(compiled(m))]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_is_gated_saved_and_restored_where_it_stands(wrap, tmp_path):
    model, x = made(), torch.randn(3, 8)
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    wrapper = wrap(model)
    assert unwrapped(wrapper) is model
    assert len(dynprune.inspect(wrapper, x).plans) == 1
    given = dynprune.apply(wrapper, x, "any", calibration=[x, x + 1])
    assert given is wrapper
    assert is_gated(model)
    with torch.no_grad():
        pruned = model(x)
        torch.testing.assert_close(wrapper(x), pruned)
    again = dynprune.load(dynprune.save(wrapper, tmp_path / "out"), factory=made)
    with torch.no_grad():
        torch.testing.assert_close(again(x), pruned)
    assert dynprune.restore(wrapper) is wrapper
    assert all(torch.equal(value, dense[key]) for key, value in model.state_dict().items())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_gated_model_that_was_wrapped_since_is_saved(wrap, tmp_path):
    x = torch.randn(3, 8)
    wrapper = wrap(dynprune.apply(made(), x, "any", calibration=[x, x + 1]))
    assert is_gated(dynprune.load(dynprune.save(wrapper, tmp_path / "out"), factory=made))


def test_a_factory_may_return_a_wrapped_model(tmp_path):
    x = torch.randn(3, 8)
    out = dynprune.save(dynprune.apply(made(), x, "any", calibration=[x]), tmp_path / "out")
    assert is_gated(dynprune.load(out, factory=lambda: nn.DataParallel(made())))


def named(name, module, base=nn.Sequential):
    """Make a class as a library that is not installed here calls it."""
    return type(name, (base,), {"__module__": module})


@pytest.mark.parametrize(
    ("wrapper", "what_to_do"),
    [
        (named("FullyShardedDataParallel", "torch.distributed.fsdp"), "before it is sharded"),
        (named("FSDPModule", "torch.distributed.fsdp"), "before it is sharded"),
        (named("DeepSpeedEngine", "deepspeed.runtime.engine"), r"model\.module"),
        (named("PeftModel", "peft.peft_model"), r"Merge the adapters first.*merge_and_unload"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_shards_and_adapters_are_refused_with_what_to_do(wrapper, what_to_do, inside, tmp_path):
    model = wrapper(*made()).eval()
    if inside:
        model = nn.DataParallel(nn.Sequential(nn.ReLU(), model))
    x = torch.randn(3, 8)
    for call in (
        lambda: dynprune.inspect(model, x),
        lambda: dynprune.apply(model, x, "any"),
        lambda: dynprune.restore(model),
        lambda: dynprune.save(model, tmp_path / "out"),
    ):
        with pytest.raises(UsageError, match=what_to_do):
            call()
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_refused_by_name():
    with torch.device("meta"):
        absent = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    with pytest.raises(UsageError, match=r"meta device \(0\.weight, 0\.bias, 2\.weight\)"):
        dynprune.apply(absent, torch.randn(3, 8), "any")
    with pytest.raises(UsageError, match=r"first call \(0\.weight.*run it once"):
        dynprune.inspect(nn.Sequential(nn.LazyLinear(4)), torch.randn(3, 8))


def test_a_plain_model_is_itself():
    model = made()
    check_whole(model)
    assert unwrapped(model) is model


def test_a_copy_that_would_run_the_model_itself_is_refused():
    model, x = made(), torch.randn(3, 8)
    old = model.forward
    model.forward = lambda x: old(x)
    with pytest.raises(UsageError, match="inplace=True"):
        dynprune.apply(model, x, "any", inplace=False)


def test_a_model_that_accelerate_prepared_is_gated(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, x = accelerate.Accelerator(cpu=True).prepare(made()), torch.randn(3, 8)
    dynprune.apply(model, x, "any", calibration=[x])
    assert is_gated(dynprune.load(dynprune.save(model, tmp_path / "out"), factory=made))
