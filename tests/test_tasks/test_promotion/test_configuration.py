"""Files of a version that are no weights: whatever is changed in one is named, before it is registered and after."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dass.errors import InputError
from dass.files import read_json, write_json
from dass.masks.proof import ProofError
from tasks.promotion.configuration import check_configuration
from tasks.promotion.proof import Proof
from tasks.promotion.verification import verify_folder, verify_version
from tasks.registry import signing
from tasks.registry.registration import register
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import version_folder
from tasks.registry.versions import find_version, folder_of
from tasks.workspace.folder import Workspace
from tests.stores import Store
from tests.workspaces import STAGES, change_settings, copy_workspace, start_workspace

PROVENANCE: dict[str, Any] = {"git_commit": "0123abc", "git_dirty": False, "dvc": {}, "seconds": {}}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A result of a fused family with a chat template, terms and a card; a folder of each kind of version beside it."""
    workspace, _ = start_workspace(tmp_path_factory.mktemp("configured"), "phi3")
    model = workspace.root / "model"
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (model / "LICENSE").write_text("the terms")
    (model / "README.md").write_text("---\nlicense: mit\n---\nthe dense model's card")
    settings = change_settings(workspace)
    for stage in STAGES:
        stage(workspace, settings)
    for artifact in ("masks", "checkpoint"):
        with version_folder(
            workspace, change_settings(workspace, register__artifact=artifact), PROVENANCE, "7" * 64
        ) as folder:
            shutil.copytree(folder, workspace.root / artifact)
    return workspace


def put(where: str, value: Any) -> Change:
    """Set a value in a JSON file; dots lead inside."""

    def change(file: Path) -> None:
        values = part = read_json(file)
        *outer, last = where.split(".")
        for key in outer:
            part = part[key]
        part[last] = value
        write_json(file, values)

    return change


def swap(before: str, after: str) -> Change:
    def change(file: Path) -> None:
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after, 1))

    return change


def add(text: str) -> Change:
    return lambda file: file.write_text((file.read_text() if file.exists() else "") + text)


# name in artifacts/pruned, change, what is told of it
BESIDE: list[tuple[str, Change, str]] = [
    ("config.json", put("rms_norm_eps", 0.5), "config.json: rms_norm_eps is 0.5, expected"),
    ("generation_config.json", put("eos_token_id", 7), "generation_config.json: eos_token_id is 7, expected 1"),
    ("tokenizer.json", put("model.vocab.</s>", 2), "tokenizer.json: model.vocab.</s> is 2, expected 1"),
    ("tokenizer_config.json", put("eos_token", "<s>"), 'tokenizer_config.json: eos_token is "<s>", expected "</s>"'),
    ("chat_template.jinja", add("{{ secrets }}"), "chat_template.jinja: it differs from the expected bytes"),
    ("LICENSE", add("!"), "LICENSE: it differs"),
    ("modeling.py", add("x = 1"), "modeling.py is extra"),
    ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
]

# name in the version's folder, change, what is told
OF_CHECKPOINTS: list[tuple[str, Change, str]] = [
    ("MLmodel", swap("loader_module: mlflow.transformers", "loader_module: os"), 'loader_module is "os", expected'),
    ("MLmodel", swap("max_new_tokens", "max_length"), "MLmodel: signature.params is"),
    ("MLmodel", swap("model_binary: model", "model_binary: ../x"), 'transformers.model_binary is "../x", expected'),
    ("MLmodel", swap("tokenizer_type: AutoTokenizer", "tokenizer_type: X"), 'tokenizer_type is "X", expected'),
    ("MLmodel", swap("Phi3ForCausalLM", "Phi9"), 'pipeline_model_type is "Phi9", expected "Phi3ForCausalLM"'),
    ("MLmodel", swap("    code: null", "    code: code"), 'flavors.transformers.code is "code", expected null'),
    ("dass/version.json", put("architecture.class", "X"), 'version.json: architecture.class is "X", expected "Phi3'),
    ("dass/version.json", put("weights", {}), "version.json: weights.model.safetensors is missing, expected"),
]
OF_ALL: list[tuple[str, Change, str]] = [
    ("README.md", swap("| ratio |", "| RATIO |"), r"README.md line \d+ is '\| RATIO \|"),
    ("bom.cdx.json", Path.unlink, "bom.cdx.json is missing"),
    ("bom.cdx.json", put("metadata.component.name", "x"), 'bom.cdx.json: metadata.component.name is "x", expected'),
    ("README.md", add("better"), r"README.md line \d+ is 'better', expected ''"),
    ("MLmodel", swap("flavors:", "flavors:\n  sklearn:\n    pickled_model: x"), r'flavors.sklearn is \{"pickled_model'),
    ("MLmodel", add("metadata:\n  a: b\n"), 'MLmodel: metadata is {"a": "b"}, expected no such key'),
    ("MLmodel", swap("conda: conda.yaml", "conda: other.yaml"), 'env.conda is "other.yaml", expected "conda.yaml"'),
    (
        "requirements.txt",
        add("\n--extra-index-url=http://x"),
        "requirements.txt says '--extra-index-url=http://x', exp",
    ),
    ("requirements.txt", swap("torch==", "torch @ http://x/"), "requirements.txt says 'torch @ http://x/"),
    ("conda.yaml", swap("- conda-forge", "- http://x"), r'conda.yaml: channels\[0\] is "http://x", expected'),
    ("conda.yaml", swap("torch==", "torch==1"), r"conda.yaml: dependencies\[2\].pip\[1\] is"),
    ("python_env.yaml", swap("- wheel", "- wheel\n- evil"), "python_env.yaml: build_dependencies has 'evil'"),
    ("python_env.yaml", swap("-r requirements.txt", "evil"), r'python_env.yaml: dependencies\[0\] is "evil"'),
    ("code/evil.py", add("x = 1"), "code/evil.py is extra"),
    ("dass/settings.json", put("prune.alpha", 0.25), "dass/settings.json: prune.alpha is 0.25, expected 0.5"),
    ("dass/settings.json", put("calibration.seed", 1), "dass/settings.json: calibration.seed is 1, expected 0"),
    ("dass/settings.json", put("sources.model.uri", "./x"), 'dass/settings.json: sources.model is "./x", expected'),
    ("dass/settings.json", put("engine.device", "cuda"), r"README.md line \d+ is"),
    ("dass/evaluation.json", put("ratio", 0.9), "dass/evaluation.json: ratio is 0.9, and follows as"),
    (
        "dass/evaluation.json",
        put("pruned.perplexity", 9.0),
        "evaluation.json: pruned.perplexity is 9.0, and follows as",
    ),
    (
        "dass/evaluation.json",
        put("dense.word_perplexity", 9.0),
        "evaluation.json: dense.word_perplexity is 9.0, and follows as",
    ),
    ("dass/evaluation.json", put("divergence.kl", 0.0), "evaluation.json: divergence.kl is 0.0, and follows as"),
    ("dass/evaluation.json", put("divergence.tokens", 1), "evaluation.json: by_position is 155, expected 1"),
    ("dass/evaluation.json", put("interval.ratio", [0.1, 0.2]), r"evaluation.json: verdicts is \[\], expected \[\{"),
    ("dass/evaluation.json", put("windows", 4), r"evaluation.json: verdicts is \[\], expected .*4 of 5 windows"),
    ("dass/evaluation.json", put("overlap", {}), "evaluation.json: overlap is "),
    ("dass/evaluation.json", put("texts.code", {}), "evaluation.json: texts is "),
    ("dass/evaluation.json", put("mask_sparsity.mlp", 0.9), "evaluation.json: mask_sparsity.mlp is 0.9, expected 0.5"),
    ("dass/version.json", put("git.commit", "f00"), r"README.md line \d+ is"),
    ("dass/version.json", put("evaluated_on.evaluation.uri", "./x"), 'evaluated_on.evaluation is "./x", expected'),
    ("dass/version.json", put("libraries", []), "bom.cdx.json: components is "),
    ("dass/version.json", put("dass", None), "version.json: dass is None, expected the version that wrote it"),
    ("dass/version.json", put("checkpoint", ".."), "dass/version.json: artifact '.*' has its checkpoint in '..'"),
    ("dass/statistics.safetensors", lambda file: file.write_bytes(b"x"), "statistics.safetensors is not the file that"),
]


def made_from(ws: Workspace) -> Callable[[], Path]:
    return lambda: ws.base


def resigned(folder: Path) -> Path:
    (folder / signing.SIGNATURE).unlink()
    signing.sign(folder)
    return folder


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_version_as_it_was_written_is_proved(template: Workspace, artifact: str) -> None:
    told = check_configuration(template.root / artifact, made_from(template))
    assert ("tokenizer" in told) == (artifact == "checkpoint")
    assert "not compared" not in told


@pytest.mark.parametrize(
    ("artifact", "name", "change", "told"),
    [("checkpoint", f"model/{name}", change, f"^model/{told}") for name, change, told in BESIDE]
    + [
        ("checkpoint", f"components/tokenizer/{name}", change, f"^components/tokenizer/{name} is")
        for name, change, _ in BESIDE
    ]
    + [("checkpoint", *case) for case in OF_CHECKPOINTS]
    + [(artifact, *case) for artifact in ("checkpoint", "masks") for case in OF_ALL]
    + [("masks", "MLmodel", swap("tasks.registry.flavour", "os"), 'loader_module is "os", expected "tasks')]
    + [("masks", "MLmodel", swap("do_sample", "sample"), "MLmodel: signature.params is")],
)
def test_a_changed_file_is_named_whoever_signs_it(
    template: Workspace, tmp_path: Path, artifact: str, name: str, change: Change, told: str
) -> None:
    folder = shutil.copytree(template.root / artifact, tmp_path / "version")
    (folder / name).parent.mkdir(exist_ok=True)
    change(folder / name)
    with pytest.raises(ProofError, match=told):
        check_configuration(resigned(folder), made_from(template))


def test_a_card_of_another_release_is_not_compared_and_that_is_told(template: Workspace, tmp_path: Path) -> None:
    folder = shutil.copytree(template.root / "masks", tmp_path / "version")
    put("dass", "9.9")(folder / "dass/version.json")
    told = check_configuration(folder, made_from(template))
    assert re.search(r"README.md was written by dass 9.9, and this is .*: not compared", told)


@pytest.mark.parametrize("key", ["right", "stranger's"])
def test_files_changed_in_the_store_are_caught_by_verify(
    template: Workspace, store: Store, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, model = copy_workspace(template, tmp_path / "ws"), f"changed files {store.kind} {key}"
    register(ws, change_settings(ws, register__model=model), PROVENANCE)
    proof = verify_version(ws, model, "1")
    assert not proof.failed, proof
    with tracking(ws) as client:
        made = find_version(client, model, "1")
        with folder_of(client, made) as folder:
            shutil.copytree(folder, tmp_path / "copy")
    if key == "stranger's":
        monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "other.pem"))
    for name, change, told in (
        ("model/config.json", put("rms_norm_eps", 0.5), "model/config.json: rms_norm_eps is 0.5"),
        ("model/generation_config.json", put("eos_token_id", 7), "model/generation_config.json: eos_token_id is 7"),
        ("model/tokenizer.json", put("model.vocab.</s>", 2), "model/tokenizer.json: model.vocab.</s> is 2"),
        ("model/chat_template.jinja", add("!"), "model/chat_template.jinja: it differs"),
        ("components/tokenizer/tokenizer_config.json", put("eos_token", "<s>"), "not the checkpoint's: eos_token is"),
    ):
        copy = shutil.copytree(tmp_path / "copy", tmp_path / name)
        change(copy / name)
        with tracking(ws) as client:
            client.log_model_artifacts(made.source.removeprefix("models:/"), str(resigned(copy)))
        for proof in (verify_version(ws, model, "1"), verify_folder(ws, model, copy)):
            assert told in told_by(proof, "configuration")
            assert "signed again" in told_by(proof, "files") or "with this signature" in told_by(proof, "files")


def told_by(proof: Proof, step: str) -> str:
    [found] = [each for each in proof.steps if each.name == step]
    assert found.passed is False, proof
    return found.told


def test_mlflow_s_loaders_read_the_checkpoint_s_own_tokenizer(template: Workspace) -> None:
    pipeline: Any = mlflow.transformers.load_model(str(template.root / "checkpoint"))
    assert pipeline.tokenizer.chat_template == TEMPLATE
    assert pipeline.tokenizer.eos_token == "</s>"
    assert len(mlflow.pyfunc.load_model(str(template.root / "checkpoint")).predict(["the model"])) == 1


# file in artifacts/, change, what is told, stage to run again
CHANGED: list[tuple[str, Change, str, str]] = [
    *((f"pruned/{name}", change, f"artifacts/pruned/{told}", "materialize") for name, change, told in BESIDE),
    (
        "pruned/dass.json",
        put("settings.alpha", 1),
        "pruned/dass.json: settings.alpha is 1, expected 0.5",
        "materialize",
    ),
    ("pruned/dass.json", Path.unlink, "pruned/dass.json: it is missing", "materialize"),
    ("pruned/training_args.bin", add("x"), "pruned/training_args.bin is extra", "materialize"),
    (
        "pruned/model.safetensors",
        lambda file: flip(file),
        "pruned/model.safetensors: it is not the file",
        "materialize",
    ),
    ("base/tokenizer.json", add(" "), "base/tokenizer.json: it is not the file that source.json names", "sources"),
    ("base/source.json", put("license", "x"), 'manifest.json: base.license is "mit", expected "x"', "prune"),
    ("masks/manifest.json", put("settings.prune.alpha", 1), "manifest.json: settings.prune.alpha is 1, exp", "prune"),
    ("masks/manifest.json", put("calibration.tokens", 1), "manifest.json: calibration.tokens is 1, exp", "prune"),
    ("masks/masks.safetensors", lambda file: flip(file), "masks.safetensors: these are not the masks", "prune"),
    ("masks/statistics.safetensors", lambda file: flip(file), "statistics.safetensors: it is not the file", "prune"),
]


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()  # it may be a hard link
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.fixture(scope="module")
def unregistered(template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The result in a workspace where nothing is registered."""
    return copy_workspace(template, tmp_path_factory.mktemp("unregistered") / "ws")


@pytest.mark.parametrize(("name", "change", "told", "stage"), CHANGED)
def test_what_was_changed_since_its_stage_is_not_registered(
    unregistered: Workspace, store: Store, name: str, change: Change, told: str, stage: str
) -> None:
    ws, never = unregistered, f"never {store.kind}"
    settings = change_settings(ws, register__model=never, register__experiment=never)
    file = ws.root / "artifacts" / name
    before = file.read_bytes() if file.exists() else None
    change(file)
    try:
        with pytest.raises(InputError, match=f"{told}.*Make it again with dvc repro -s -f {stage}, then run: dass run"):
            register(ws, settings, PROVENANCE)
    finally:
        file.unlink(missing_ok=True)
        if before is not None:
            file.write_bytes(before)
    with tracking(ws) as client:
        assert client.get_experiment_by_name(never) is None
        assert never not in [made.name for made in client.search_registered_models()]
