"""A run in a dozen lines: the same facts for the terminal and for the page."""

from __future__ import annotations

from typing import Any


def summary_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each fact, in the order a reviewer asks for them.

    Args:
        facts: a manifest as a dict (`folder` is optional).
    """
    model, data, sae, head, health = (facts[key] for key in ("model", "data", "sae", "head", "health"))
    held = head["held_out"]
    quality = sae["quality"]
    lines = [
        ("run", f"{facts['name']}  ({facts['run_id']}, {facts['created']})"),
        (
            "model",
            f"{model['name']}, hidden_states[{model['layer']}], d={model['d_model']}, {model['dtype']} ({model['source']})",
        ),
        (
            "pairs",
            f"{data['n_pairs']:,} pairs, {data['n_prompts']:,} prompts, {data['n_responses']:,} answers, "
            f"{data['n_tokens']:,} answer tokens, {data['n_skipped']:,} rows skipped",
        ),
        ("sae", f"{_kind(sae)}, {sae['level']}-level"),
        (
            "sae quality",
            f"variance unexplained {quality['fvu']:.3f}, L0 {quality['l0']:.1f}, dead {quality['dead_fraction']:.1%} "
            f"(n={quality['n']:,} held-out vectors)",
        ),
        ("head", _head(head)),
        ("held out", f"accuracy {interval(held)} (n={held['n']:,} pairs)"),
        (
            "health",
            f"contributions sum to the reward within {health['sum_error']:.1e} of its scale (n={health['sum_checked']:,}); "
            f"batch spread {health['batch_spread_max']:.1e}",
        ),
    ]
    return [("folder", facts["folder"]), *lines] if "folder" in facts else lines


def _kind(sae: dict[str, Any]) -> str:
    """TopK with its k; of an imported SAE its activation, and what is stored where the number of active ones varies."""
    if "activation" not in sae:
        return f"TopK, M={sae['latents']}, k={sae['k']}"
    said = f"{sae['activation']} ({sae.get('format', 'imported')}), M={sae['latents']}, "
    cut = sae["quality"].get("cut_share")
    if cut is None:
        return said + f"k={sae['k']}"
    return said + f"the {sae['k']} largest of a token stored (more were active on {cut:.2%} of held-out vectors)"


def _head(head: dict[str, Any]) -> str:
    """How the head was fitted, or trained together with a SARM model's blocks."""
    if head.get("l2") is not None:
        return f"Bradley-Terry, pooling {head['pooling']}, l2 {head['l2']:g}, gradient norm {head['gradient_norm']:.1e}"
    trained = head.get("trained") or {}
    how = (
        f"mode {trained['mode']}, scope {trained['scope']}, {trained['steps']:,} steps"
        if "mode" in trained
        else "given"
    )
    return f"Bradley-Terry, pooling {head['pooling']}, of the SARM model ({how})"


def interval(row: dict[str, Any]) -> str:
    """'0.712 [0.690, 0.733]', or the words for what is missing."""
    if row["value"] is None:
        return "not computed"
    if row["ci_low"] is None:
        return f"{row['value']:.3f} (no interval)"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
