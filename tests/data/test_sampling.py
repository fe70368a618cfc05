import pytest
import torch

from dynprune.data import (
    VOID,
    LabelValues,
    TrainingBatches,
    open_dataset,
    training_batch,
    training_batches,
)
from dynprune.data.sampling import sample_index
from dynprune.errors import UsageError
from tests.data.scenes import folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_dataset(folder(tmp_path_factory.mktemp("data"), samples=5), "train")


def same(first, second):
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_a_batch_depends_on_seed_and_step_alone(data):
    first = [training_batch(data, step, 2, 0, (8, 8)) for step in range(6)]
    torch.manual_seed(99)
    for step in (4, 1, 5):
        assert same(training_batch(data, step, 2, 0, (8, 8)), first[step])
    assert not same(training_batch(data, 0, 2, 1, (8, 8)), first[0])
    assert not same(first[0], first[1])


def test_a_batch_has_the_shapes_and_types_that_a_model_takes(data):
    images, labels = training_batch(data, 0, 3, 0, (8, 10))
    assert images.shape == (3, 3, 8, 10)
    assert labels.shape == (3, 8, 10)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_every_epoch_is_a_permutation_and_epochs_differ():
    epochs = [[sample_index(7, epoch * 7 + k, 0) for k in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_shares_of_all_processes_make_the_whole_batch(data):
    whole = training_batch(data, 3, 4, 0, (8, 8))
    shares = [training_batch(data, 3, 4, 0, (8, 8), rank=r, processes=2) for r in range(2)]
    for rank, share in enumerate(shares):
        assert same(share, [part[rank::2] for part in whole])


def test_a_batch_that_processes_cannot_share_is_refused(data):
    with pytest.raises(UsageError, match="batch_size=3 cannot be shared evenly by 2 processes"):
        training_batch(data, 0, 3, 0, (8, 8), processes=2)


def test_a_padded_pixel_is_zero_after_normalisation(data):
    mean = (0.2, 0.4, 0.6)
    images, labels = training_batch(
        data, 0, 1, 0, (40, 40), (1.0, 1.0), mean=mean, flip=0.0, photometric=False
    )
    # float32 rounding of 255 * mean
    assert images[0][:, labels[0] == 255].abs().max() < 1e-5
    assert (labels == 255).any()


def test_a_run_that_resumes_gets_the_batches_that_it_would_have_had(data):
    batches = TrainingBatches(data, 2, 0, (8, 8))
    whole = list(training_batches(batches, range(5)))
    resumed = list(training_batches(TrainingBatches(data, 2, 0, (8, 8)), range(3, 5)))
    assert all(same(one, two) for one, two in zip(whole[3:], resumed, strict=True))


def test_worker_processes_make_the_same_batches_and_touch_no_random_state(data):
    batches = TrainingBatches(data, 2, 0, (8, 8))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    made = list(training_batches(batches, range(3), workers=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(same(one, batches[step]) for step, one in enumerate(made))


@pytest.mark.parametrize("ignore", [(0,), (0, 2)])
def test_no_batch_shows_a_label_that_is_ignored(tmp_path, ignore):
    """Nor does what pads a crop, at any scale, get one: it is void."""
    data = open_dataset(folder(tmp_path), values=LabelValues(ignore=ignore))
    for step in range(6):
        _, labels = training_batch(data, step, 2, 0, (24, 40), (0.3, 2.0))
        found = set(labels.unique().tolist())
        assert found <= {0, 1, 2, VOID} - set(ignore)
        assert VOID in found
