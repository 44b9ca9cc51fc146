"""Dictionaries of parameters as ZeMosaic passes them, and configurations: into specifications and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from zemosaic_phase3.methods import DEFAULT_KAPPA, REJECTIONS, RejectName, WscImpl, canonical
from zemosaic_phase3.settings import as_bool, as_number, setting
from zemosaic_phase3.spec import StackSpec

WSC_ENVIRONMENT: Final = "ZEMOSAIC_WSC_IMPL"


def wsc_impl_choice(zconfig: object = None, stacking_params: Mapping[str, Any] | None = None) -> str:
    """Which winsorizing the ZeMosaic entry points use: params, then zconfig, then environment, then legacy."""
    for value in (
        (stacking_params or {}).get("wsc_impl"),
        setting(zconfig, "wsc_impl"),
        os.environ.get(WSC_ENVIRONMENT),
    ):
        if value:
            return canonical("winsorizing (wsc_impl)", value, WscImpl)
    return "legacy_quantile"


def stack_spec_from_params(params: Mapping[str, Any], zconfig: object = None) -> StackSpec:
    """Turn a ``stacking_params`` dictionary of existing runs into a :class:`StackSpec`.

    Absent keys, and numbers that are None or empty text, take the defaults of the ZeMosaic entry points (no
    normalisation, weight or rejection, kappa 3/3, limits 0.05/0.05, mean, RGB equalised). Keys of ours, all optional:
    ``wsc_impl``, ``apply_rewinsor``, ``min_radial_weight_floor``, ``interpolation``, ``line_fit``, ``gesd_fraction``,
    ``gesd_alpha``, ``flatten``, ``bounded_by_stars``, ``grid``.

    Raises
    ------
    SpecError
        A name or a value is not allowed.
    """
    get = params.get
    equalize = setting(zconfig, "poststack_equalize_rgb") if "poststack_equalize_rgb" not in params else None

    def number(key: str, default: float) -> float:
        value = get(key)
        is_absent = value is None or (isinstance(value, str) and not value.strip())
        return default if is_absent else as_number(key, value)

    reject = canonical("rejection", get("stack_reject_algo", "none"), RejectName)
    in_sigma = {row.name for row in REJECTIONS if row.unit in ("sigma", "none")}
    kappas = (3.0, 3.0) if reject in in_sigma else DEFAULT_KAPPA[reject]
    return StackSpec(
        normalize=get("stack_norm_method", "none"),
        weight=get("stack_weight_method", "none"),
        reject=reject,  # type: ignore[arg-type]
        wsc_impl=wsc_impl_choice(zconfig, params),  # type: ignore[arg-type]
        kappa_low=number("stack_kappa_low", kappas[0]),
        kappa_high=number("stack_kappa_high", kappas[1]),
        winsor_limits=get("parsed_winsor_limits"),  # type: ignore[arg-type]
        apply_rewinsor=as_bool(get("apply_rewinsor"), True),
        line_fit=get("line_fit") or "lad",
        gesd_fraction=number("gesd_fraction", 0.3),
        gesd_alpha=number("gesd_alpha", 0.05),
        combine=get("stack_final_combine") or "mean",
        equalize_rgb=as_bool(get("poststack_equalize_rgb", equalize), True),
        radial_weight=as_bool(get("apply_radial_weight"), False),
        radial_feather=number("radial_feather_fraction", 0.8),
        radial_power=number("radial_shape_power", 2.0),
        radial_floor=number("min_radial_weight_floor", 0.05),
        interpolation=get("interpolation") or "lanczos3",
        flatten="auto" if get("flatten") == "auto" else as_bool(get("flatten"), False),  # type: ignore[arg-type]
        grid=get("grid"),
        bounded_by_stars=as_bool(get("bounded_by_stars"), False),
        spare_stars=False,  # the doors keep the numbers they had
    )


def params_from_stack_spec(spec: StackSpec) -> dict[str, Any]:
    """Return the ``stacking_params`` dictionary that means the same as ``spec``."""
    return {
        "stack_norm_method": spec.normalize,
        "stack_weight_method": spec.weight,
        "stack_reject_algo": spec.reject,
        "wsc_impl": spec.wsc_impl,
        "stack_kappa_low": spec.kappa_low,
        "stack_kappa_high": spec.kappa_high,
        "parsed_winsor_limits": spec.winsor_limits,
        "apply_rewinsor": spec.apply_rewinsor,
        "line_fit": spec.line_fit,
        "gesd_fraction": spec.gesd_fraction,
        "gesd_alpha": spec.gesd_alpha,
        "stack_final_combine": spec.combine,
        "poststack_equalize_rgb": spec.equalize_rgb,
        "apply_radial_weight": spec.radial_weight,
        "radial_feather_fraction": spec.radial_feather,
        "radial_shape_power": spec.radial_power,
        "min_radial_weight_floor": spec.radial_floor,
        "interpolation": spec.interpolation,
        "flatten": spec.flatten,
        "grid": spec.grid,
        "bounded_by_stars": spec.bounded_by_stars,
    }
