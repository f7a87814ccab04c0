"""The sheet that `?` opens."""

from __future__ import annotations

_KEYS = (
    ("j  k  or  ↓  ↑", "next, previous row of the list"),
    ("/", "search the list"),
    ("1 … 6", "Features, Pairs, Salience, Impact, Steering, Benchmarks"),
    ("+  −  0", "Salience: put the selected feature into S+, into S−, or take it out of the open set"),
    ("Del", "Steering: take the feature whose slider has the focus off the sliders"),
    ("r", "show or blur text that may be harmful"),
    ("Esc", "leave a field, close a sheet, clear the selection"),
    ("?", "this sheet"),
)

_WORDS = (
    ("feature", "one direction the sparse autoencoder found; active on few tokens"),
    ("weight w", "what one unit of the feature's activation adds to the reward"),
    ("density", "share of answer tokens on which the feature is active"),
    ("mean contribution", "mean over pairs of w × (activation in chosen − in rejected)"),
    ("detection score", "balanced accuracy with which the label predicts held-out activation; 0.5 is chance"),
    ("effect", "mean over prompts of the feature's activation in chosen − in rejected answers"),
    ("effect size", "the effect over the standard deviation of the prompts' differences"),
    ("q", "false discovery rate (Benjamini-Hochberg) over all tested features; significant at 0.05 or below"),
    ("at equal length", "what remains of the effect when chosen and rejected answers are equally long"),
    ("s", "SAFER's salience, (h+ − h−) / (h+ + h− + C), from sums over chosen and rejected answers"),
    ("safety set", "features counted as good (S+) and as bad (S−)"),
    ("pair score", "activation of S+ minus S− per sentence end, chosen − rejected answer (SAFER)"),
    ("plan", "which training pairs are flipped or dropped, most or least typical first"),
    ("preview", "the head refitted on the changed pairs; not a retrain of the model"),
    (
        "steering",
        "a change of head weights: multiplier 1 is unchanged, 0 takes the feature out; never written into the run",
    ),
    ("target, complement", "the chosen answers of a slice, and every other answer; of held-out pairs"),
    ("specificity", "mean shift of the target's rewards over the mean shift of the complement's"),
    ("retrained", "the model really trained again on the changed pairs"),
    ("margin", "reward of the chosen answer minus the rejected one's; above 0 the model agrees"),
)


def _rows(rows: tuple[tuple[str, str], ...], tag: str) -> str:
    return "".join(f"<dt><{tag}>{name}</{tag}></dt><dd>{what}</dd>" for name, what in rows)


SHORTCUTS_HTML = (
    f'<div class="help"><dl>{_rows(_KEYS, "kbd")}</dl><h3>Words</h3><dl>{_rows(_WORDS, "b")}</dl>'
    "<h3>Colours</h3><p><span class='rs-up'>Blue, +</span> raises the reward; <span class='rs-down'>vermillion, −</span> "
    "lowers it; grey is neither; <span class='rs-missing'>hatched</span> was not computed.</p>"
    "<p>The address bar always holds a link to exactly what you see.</p></div>"
)
