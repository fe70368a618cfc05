"""Laws of weights on models that keep or share them."""

from tests.laws import nets


def test_a_copy_that_shares_a_weight_with_its_model_is_found(subject, statuses):
    assert statuses(subject(nets.CopyWrong), "deep copies") == {"deep copies": "broken"}


def test_a_model_that_training_mode_changes_is_found(subject, statuses):
    assert statuses(subject(nets.TrainedWrong), "train and eval") == {"train and eval": "broken"}
