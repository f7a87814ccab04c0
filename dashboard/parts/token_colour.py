"""What the tokens of answers are coloured by, the same in every view that shows answers."""

from __future__ import annotations

from core.store.reader import RunReader
from dashboard.state import AppState


def coloured_by(state: AppState, reader: RunReader) -> int | None:
    """The feature the tokens are coloured by; None = by total contribution, also while no feature is selected."""
    feature = state.feature if state.tokens == "feature" else None
    return feature if feature in reader.features else None


def colour_by(state: AppState, reader: RunReader, feature: int) -> None:
    """Colours by a feature; choosing it again goes back to the totals."""
    if coloured_by(state, reader) == feature:
        state.tokens = "total"
    elif feature in reader.features:
        state.param.update(feature=feature, tokens="feature")
