"""The link that puts a feature on the sliders of the Steering view, from anywhere on the page."""

from __future__ import annotations

from dashboard.escape import esc
from dashboard.state import AppState


def steer_href(state: AppState, feature: int) -> str:
    """The Steering view with this feature beside those that are on the sliders now.

    A link is drawn long before it is clicked; with `data-adds="FEATURE:1"` the click adds to what is steered then
    (parts/bridge.js), so that nothing is lost or comes back.
    """
    return state.link(view="steering", steering={**state.steering, feature: state.steering.get(feature, 1.0)})


def steer_html(state: AppState, feature: int, weight: object) -> str:
    """The link as a chip; '' for a feature without a head weight, which no multiplier changes."""
    if not weight:
        return ""
    href = esc(steer_href(state, feature))
    what = "Put it on a slider: what would other weights of this feature do?"
    return f'<a class="rs-chip" data-adds="{feature}:1" href="{href}" title="{what}">Steer</a>'
