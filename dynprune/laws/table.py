"""The laws that a pruned model is held to: one name, one function."""

from collections.abc import Mapping

from dynprune.laws import batches, calling, equality, experts, sequences, weights, wrapping, written
from dynprune.laws.judge import Law

__all__ = ["EXPORT_LAWS", "LAWS"]

LAWS: Mapping[str, Law] = {
    "nothing skipped equals dense": equality.nothing_skipped,
    "compact equals masked": equality.compact_equals_masked,
    "experts equal plain layers": experts.experts_are_plain,
    "another size": equality.another_size,
    "more outputs": equality.more_outputs,
    "rows alone": batches.rows_alone,
    "rows shuffled": batches.rows_shuffled,
    "other batch sizes": batches.other_batches,
    "empty batch": batches.empty_batch,
    "padded rows": sequences.padded_rows,
    "masks of other types": sequences.mask_types,
    "later tokens": sequences.later_tokens,
    "token by token": sequences.by_steps,
    "generate": sequences.generated,
    "repeated calls": calling.repeated_calls,
    "threads": calling.many_threads,
    "a call inside a call": calling.re_entered,
    "after an exception": calling.after_an_exception,
    "inside another model": wrapping.inside_another_model,
    "hooks": wrapping.hooks_called,
    "functional calls": wrapping.functional_calls,
    "parts alone": calling.parts_alone,
    "arguments by position": calling.placed_arguments,
    "memory layouts": calling.layouts_of_inputs,
    "inputs untouched": calling.inputs_untouched,
    "gradient modes": calling.grad_modes,
    "double precision": equality.double_precision,
    "half precision": equality.half_precision,
    "autocast": equality.autocast,
    "changed weights": weights.changed_weights,
    "deep copies": weights.copies,
    "train and eval": weights.modes,
    "state dicts": weights.state_dicts,
    "save and load": written.saved_and_loaded,
    "restored equals built anew": written.built_anew,
}
"""Every law that is tried by default, in the order in which it is told."""

EXPORT_LAWS: Mapping[str, Law] = {
    "torch.export": written.exported,
    "torch.compile": written.compiled,
    "onnx": written.written_as_onnx,
}
"""Laws that trace the model, which takes longer."""
