"""LightningModule that records in its checkpoints how its network was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from mpunet.metrics.consistency import ConsistencyRange
from mpunet.training.widen import widened
from mpunet.weights import Weights

__all__ = ["RecordedModule"]


class RecordedModule(L.LightningModule):
    """Base class with the record of the network ``net`` and the loading of its weights.

    Attributes:
        net: the network.
        consistency_range: range of the consistency with the thick scans in the last complete
            validation, used by ``predict --check``; None before the first validation.
        training_record: what the network was trained on, from the checkpoint, see
            :meth:`mpunet.ThickThinDataModule.training_record`; None if unknown.
        error_record: error model of the weights file, see
            :class:`mpunet.inference.errors.ErrorModel`; None if there is none. Checkpoints do not
            store it, because more training makes it invalid.
        weights_file: file from which :meth:`load_weights` loaded the network, else None.
    """

    net: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.consistency_range: ConsistencyRange | None = None
        self.training_record: dict[str, Any] | None = None
        self.error_record: dict[str, Any] | None = None
        self.weights_file: Path | None = None

    def load_weights(self, weights: Weights) -> None:
        """Load the weights of a network and their record, for validation, test or prediction.

        Raises:
            ValueError: if the weights do not fit the network.
        """
        self.net.load_state_dict(weights.network().state_dict())
        self.training_record = weights.record.get("training")
        known = weights.record.get("consistency")
        self.consistency_range = None if known is None else ConsistencyRange(**known)
        self.error_record = weights.record.get("error")
        self.weights_file = weights.source

    def initialize_from(self, weights: Weights) -> list[str]:
        """Start training from weights: copy the tensors that match in name and shape.

        A network for another ratio can use all but a few tensors. A wider MPU-Net starts as the
        same function, see :func:`mpunet.training.widen.widened`. The origin of the weights is
        stored in the record of the checkpoints.

        Returns:
            The names of the tensors that keep their random values.

        Raises:
            ValueError: if no tensor matches.
        """
        own = self.net.state_dict()
        fitting = widened(weights.tensors, self.net)
        if not fitting:
            raise ValueError(
                f"{weights.source} has no tensor that fits {type(self.net).__name__}: it is for "
                "another network."
            )
        self.net.load_state_dict({**own, **fitting})
        before = {
            "file": weights.source.name,
            "sha256": weights.sha256,
            "training": weights.record.get("training"),
        }
        self.training_record = {"began_with": before}
        return sorted(set(own) - set(fitting))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the training record and the consistency range."""
        if record := self._current_record():
            checkpoint["training"] = record
        if self.consistency_range is not None:
            checkpoint["consistency"] = self.consistency_range._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the training record and the consistency range."""
        self.training_record = checkpoint.get("training")
        known = checkpoint.get("consistency")
        self.consistency_range = None if known is None else ConsistencyRange(**known)

    def _current_record(self) -> dict[str, Any]:
        """Return the record of the data in training, or else of the loaded checkpoint."""
        known = self.training_record or {}
        record: dict[str, Any] = getattr(
            getattr(self._trainer, "datamodule", None), "training_record", dict
        )()
        return (
            {**record, **({"began_with": known["began_with"]} if "began_with" in known else {})}
            if record
            else known
        )
