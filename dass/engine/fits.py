"""Whether a plan can prune a model: found from the model's structure, before any work and without its weights."""

from pathlib import Path

from dass.errors import InputError
from dass.method.mask import check_divisible
from dass.method.methods import Projection
from dass.method.plan import Plan
from dass.model.decoder import Decoder
from dass.model.glu import find_glus, parameters_of
from dass.model.streaming import structure_of


def check_fits(decoder: Decoder, what: Plan) -> None:
    """Refuse a model that the plan cannot prune, before any work.

    Raises:
        InputError: a layer without a GLU MLP, one whose weights are another layer's too, an axis that N:M groups cannot
            tile, or an update for an MLP that does more than gate; layers to skip that it does not have, or all.
    """
    layers = len(decoder)
    if what.skip_layers and what.skip_layers[-1] >= layers:
        raise InputError(f"skip_layers names {what.skip_layers[-1]}: expected layers of the model, 0 to {layers - 1}.")
    if len(what.skip_layers) == layers:
        raise InputError(f"skip_layers names all {layers} layers: nothing is left to prune. Leave one out.")
    if what.judges_by is not None and decoder.model.base_model is decoder.model:
        instead = "Name a method." if what.method == "auto" else "Use allocation: owl."
        raise InputError(
            f"{what.judges_by}, and {type(decoder.model).__name__} is not made of a body and a head: what it predicts "
            f"cannot be judged layer by layer. {instead}"
        )
    owners: dict[int, str] = {}
    tied: dict[str, str] = getattr(decoder.model, "all_tied_weights_keys", None) or {}
    shared = {*tied, *tied.values()}
    for index in range(layers):
        here = what.of_layer(index)
        layer, layer_name = decoder.structure(index), decoder.layer_name(index)
        mlps = find_glus(layer)
        for name in parameters_of(mlps):
            full = f"{layer_name}.{name}"
            other = owners.setdefault(id(layer.get_parameter(name)), full)
            if other != full or full in shared:
                with_ = f" with {other}" if other != full else ""
                raise InputError(
                    f"{full} is shared{with_}: expected layers with MLPs of their own. This model cannot be pruned "
                    "layer by layer."
                )
        for mlp in mlps:
            where = f"of {layer_name}.{mlp.name}"
            intermediate, hidden = mlp.sizes
            along = {"intermediate": intermediate, "hidden": hidden}
            for name in sorted({size for each in here.only for size in _grouped_sizes(each, here)}):
                check_divisible(along[name], what.pattern, f"the {name} size {where}")
            if not here.only:
                continue
            if what.update == "reconstruct-mlp" and any(bias is not None for bias in mlp.biases):
                raise InputError(
                    f'update is "reconstruct-mlp", and the MLP {where} has biases. Use update: reconstruct.'
                )
            if what.update != "none":
                _ = mlp.activation  # refuses a module without one
                if not mlp.is_plain:
                    raise InputError(
                        f'update is "{what.update}", and the MLP {where} does more than act(gate x) times up x: it '
                        "cannot be re-fitted. Use update: none."
                    )


def _grouped_sizes(projection: Projection, what: Plan) -> set[str]:
    """Which sizes of an MLP the groups of a matrix must tile."""
    along = ("hidden", "intermediate") if projection == "down_proj" else ("intermediate", "hidden")
    if what.layout == "transposable" and projection != "down_proj":
        return set(along)
    axes = (what.scored(score).axis(projection) for score in what.candidates)
    return {along[axis] for axis in axes if axis is not None}


def check_checkpoint_fits(folder: Path, what: Plan) -> None:
    """`check_fits` for a checkpoint of which only config.json need be there: a second's work, no weights.

    Raises:
        InputError: a config that transformers makes no decoder-only language model of; as `check_fits`.
    """
    check_fits(Decoder(structure_of(folder)), what)
