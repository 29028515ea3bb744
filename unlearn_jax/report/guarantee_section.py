"""Report's section on a guarantee: the certified upper bound and the tested lower one, apart.

All of it is what `audit.guarantee` left in results.json. No JAX.
"""

from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from unlearn_jax.report.page import NUMBER, Finding, panel, to_svg

CERTIFIERS = {
    "retrain": "the same pipeline applied to a model trained without the forget set",
    "reference": "the same pipeline applied to public weights, which says less",
}
_UPPER = {"verified": bool, "reason": str, "cautions": [str]}
_RECORD = dict.fromkeys(("mechanism", "certifier", "accountant"), str) | {"assumptions": [str]}
_RECORD |= dict.fromkeys(("epsilon", "delta", "noise_std", "sensitivity"), NUMBER)
_RECORD |= {"steps": int, "parameters": int, "conditional": bool}
_LOWER = {"epsilon": NUMBER, "n": [int], "significance": NUMBER, "delta": NUMBER}
_LOWER |= {"self_test": bool, "repeated": str, "assumptions": [str]}


def schema(certificate: Any) -> Any:
    """Describe what results.json must hold: a bound that is missing has a reason in its place."""
    if certificate is None:
        return type(None)
    try:
        readable = certificate["upper"]["verified"] or certificate["upper"]["record"] is not None
        audited, drawn = not certificate["lower"]["reason"], "tradeoff" in certificate["upper"]
    except (TypeError, KeyError):
        readable = audited = True  # the schema then says what is missing
        drawn = False
    upper = _UPPER | ({"record": _RECORD} if readable else {})
    upper |= {"tradeoff": [[NUMBER]]} if drawn else {}  # earlier results have none
    return {"upper": upper, "lower": {"reason": str} | (_LOWER if audited else {}), "clipping": str}


def refuted(certificate: dict[str, Any]) -> bool:
    """Tell whether an audit found more than the certificate allows, or other noise than it says."""
    upper, lower = certificate["upper"]["record"], certificate["lower"]
    if upper is None or lower["reason"]:
        return False
    return lower["epsilon"] > upper["epsilon"] or not lower["self_test"]


def finding(certificate: dict[str, Any] | None, exact: dict[str, Any] | None = None) -> Finding:
    """Say what may be claimed: nothing without a verified certificate that nothing contradicts.

    Args:
      certificate: both bounds of a noised run.
      exact: of a model that images were deleted from by replay, see `exact.verify.of_model`.
    """
    question = "Is there a guarantee?"
    if exact and exact["reason"]:
        text = "A chain is there that does not fit its files, so it guarantees nothing. "
        return Finding("bad", text + exact["reason"], question, "not verified")
    if exact:
        text = "If a replay ends with the same bits, which nobody tried for this page: "
        return Finding("unclear", text + exact["lines"][0], question, "exact, once replayed")
    if certificate is None:
        text = "What certifies is noise after a projection; ascent alone certifies nothing."
        return Finding("unclear", text, question, "no certificate")
    upper, lower = certificate["upper"], certificate["lower"]
    record = upper["record"]
    if not upper["verified"]:
        text = "A certificate is there that did not pass verification, so it guarantees nothing. "
        return Finding("bad", text + upper["reason"], question, "not verified")
    text = f"Certified: ε is at most {record['epsilon']:.4g} at δ = {record['delta']:g}, against "
    text += f"{CERTIFIERS.get(record['certifier'], record['certifier'])}. "
    tested = "The mechanism was not tested. "
    if not lower["reason"]:
        tested = "Tested: attacked, the mechanism shows an ε of at least "
        tested += f"{lower['epsilon']:.3g}, which can refute that and not support it. "
    if refuted(certificate):
        text += f"{tested}That contradicts the certificate: there is a bug, nothing is guaranteed."
        return Finding("bad", text, question, "refuted")
    text += tested + "".join(f"Caution: {caution}. " for caution in upper["cautions"])
    status = "unclear" if upper["cautions"] or lower["reason"] else "good"
    return Finding(status, text.strip(), question, "certified")


def tradeoff(certificate: dict[str, Any] | None) -> Markup | None:
    """Draw how much noise the mechanism takes for each epsilon; None if nothing is certified."""
    points = certificate and certificate["upper"].get("tradeoff")
    if not points or not certificate["upper"]["verified"]:
        return None
    own = certificate["upper"]["record"]["epsilon"]
    figure, axes = panel(xlabel="ε", ylabel="noise, in radii")
    axes.plot(*zip(*points, strict=True), color="gray", lw=1)
    for epsilon, noise in points:
        mine = epsilon == own
        axes.plot(epsilon, noise, "o" if mine else ".", color="black" if mine else "gray")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):  # the page's style has no powers of ten
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(base=4))
    text = "; ".join(f"ε {epsilon:.4g}: {noise:,.3g} radii" for epsilon, noise in points)
    return to_svg(figure, "tradeoff", f"Noise for each epsilon. {text}")


def summary(certificate: dict[str, Any] | None) -> list[str]:
    """Write one line for a terminal with both bounds, or none if nothing may be claimed."""
    if certificate is None or not certificate["upper"]["verified"] or refuted(certificate):
        return []
    record, lower = certificate["upper"]["record"], certificate["lower"]
    text = f"Certified: epsilon <= {record['epsilon']:.4g} at delta {record['delta']:g}. "
    if lower["reason"]:
        return [text + "Not tested."]
    return [text + f"Tested: epsilon >= {lower['epsilon']:.3g} (N = {lower['n'][0]})."]
