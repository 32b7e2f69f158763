import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutput

from dqlora.data.audio import SAMPLE_RATE, read_audio, to_float32, to_int16
from dqlora.errors import UserError
from dqlora.models.alignment import aligned_frames, student_frames_at
from dqlora.models.wav2vec2 import load_student
from dqlora.models.whisper import Teacher
from tests.conftest import tone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return Teacher(teacher_folder, CPU)


@pytest.mark.parametrize("click_at", [0.5, 1.0, 1.37, 2.21])
def test_teacher_and_student_hear_a_click_in_the_same_frame(
    teacher: Teacher, student_folder: Path, click_at: float
) -> None:
    """The frame that a click changes most, in the teacher and in the student, is the same within one frame."""
    quiet = 1e-3 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
    click = quiet.copy()
    start = round(click_at * SAMPLE_RATE)
    click[start : start + 80] += 0.5

    student = load_student(student_folder, "none", CPU)
    cnn = student.wav2vec2.feature_extractor  # not normalised over the clip, which would change every frame
    heard = [cnn(torch.from_numpy(sound)[None])[0].T for sound in (quiet, click)]
    student_frame = int((heard[1] - heard[0]).norm(dim=-1).argmax())
    mel = [teacher.log_mel([sound])[0] for sound in (quiet, click)]
    hidden = [teacher.model.model.encoder.conv1(one[None]).relu() for one in mel]
    hidden = [teacher.model.model.encoder.conv2(one)[0].T for one in hidden]
    teacher_frame = int((hidden[1] - hidden[0]).norm(dim=-1).argmax())

    assert abs(student_frame - 50 * click_at) <= 1.5
    aligned = aligned_frames(student.config, student_frame + 1, 150)[student_frame]
    assert abs(int(aligned) - teacher_frame) <= 1


def test_alignment_is_by_time_not_by_stretching(student_folder: Path) -> None:
    config = load_student(student_folder, "none", CPU).config
    assert aligned_frames(config, 5, 100).tolist() == [1, 2, 3, 4, 5]
    assert aligned_frames(config, 5, 4).tolist() == [1, 2, 3, 3, 3]  # never past the teacher's last frame


def test_features_cover_the_speech_and_not_the_padding(teacher: Teacher) -> None:
    clips = [tone(1.0), tone(2.51), tone(30.0)]
    features = teacher.encode(clips)
    assert [rows.shape for rows in features] == [(50, teacher.width), (126, teacher.width), (1500, teacher.width)]
    assert all(rows.dtype == np.float16 and np.isfinite(rows).all() for rows in features)
    assert features[1].shape[0] == math.ceil(50 * 2.51)
    alone = teacher.encode(clips[1:2])[0].astype(np.float32)
    assert np.abs(alone - features[1].astype(np.float32)).max() < 0.05


def test_int16_clips_have_the_features_of_float32_ones(teacher: Teacher) -> None:
    clips = [to_int16(tone(seconds)) for seconds in (1.0, 0.4, 1.0)]
    for whole, exact in zip(teacher.encode([to_float32(clip) for clip in clips]), teacher.encode(clips), strict=True):
        assert np.array_equal(whole, exact)


def test_the_teacher_transcribes_human_speech(teacher: Teacher, shared: Path) -> None:
    clip = read_audio(shared / "speech/prompts/test/agent-alreadyon.ogg")
    text = teacher.transcribe([clip, np.zeros(16_000, np.float32)], "en")[0]
    assert "already logged on" in text.lower()


def test_a_folder_without_a_whisper_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as a Whisper model"):
        Teacher(tmp_path, CPU)


def test_frames_of_student_and_teacher_map_to_each_other(student_folder: Path) -> None:
    config = load_student(student_folder, "none", CPU).config
    to_teacher = aligned_frames(config, 49, 50)
    to_student = student_frames_at(config, 49, 50)
    assert len(to_student) == 50
    assert (to_student[to_teacher] == np.arange(49)).all()
    assert to_student[0] == 0  # before the first centre


@pytest.mark.parametrize("seconds", [0.3, 7.0, 30.0])
def test_the_spectrogram_is_that_of_transformers(teacher: Teacher, teacher_folder: Path, seconds: float) -> None:
    clip = tone(seconds)
    extractor = WhisperFeatureExtractor.from_pretrained(teacher_folder)
    expected = extractor([clip], sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    torch.testing.assert_close(teacher.log_mel([clip]), expected, atol=1e-4, rtol=0)


def test_a_full_window_is_encoded_as_by_transformers(teacher: Teacher) -> None:
    clip = tone(28.0)  # with the margin, all of the window
    with torch.inference_mode():
        expected = teacher.model.model.encoder(teacher.log_mel([clip])).last_hidden_state[0, : 28 * 50]
    assert np.allclose(teacher.encode([clip])[0], expected.numpy(), atol=2e-3, rtol=1e-3)


def test_features_do_not_depend_on_the_other_clips(teacher: Teacher) -> None:
    clips = [tone(seconds, 100 + 50 * seconds) for seconds in (0.5, 3.0, 2.6, 9.0, 2.5)]
    for clip, together in zip(clips, teacher.encode(clips), strict=True):
        alone = teacher.encode([clip])[0]
        assert together.shape == alone.shape == (math.ceil(50 * len(clip) / SAMPLE_RATE), teacher.width)
        assert np.allclose(together, alone, atol=2e-3, rtol=1e-3)


def test_scores_are_those_of_decoding_token_by_token(teacher: Teacher) -> None:
    """Against a loop over the decoder that is fed its own tokens; a batch scores each clip as it does alone."""
    model, settings = teacher.model, teacher.model.generation_config
    clips = [tone(1.5), np.zeros(SAMPLE_RATE, np.float32), tone(4.0, 90)]
    found = teacher.transcribe_with_scores(clips, "en")
    assert [each.text for each in found] == teacher.transcribe(clips, "en")
    for clip, each in zip(clips, found, strict=True):
        with torch.inference_mode():
            encoded = model.model.encoder(teacher.log_mel([clip]))
            tokens = [model.config.decoder_start_token_id, settings.no_timestamps_token_id]
            total, count = 0.0, 0
            while tokens[-1] != model.config.eos_token_id and count < 200:
                logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits[0]
                if not count:
                    silence = teacher._tokenizer.convert_tokens_to_ids("<|nocaptions|>")
                    assert each.no_speech == pytest.approx(float(logits[0].softmax(-1)[silence]), abs=1e-4)
                last = logits[-1].clone()
                last[settings.suppress_tokens] = -math.inf
                log_probs = last.log_softmax(-1)
                if not count:
                    last[settings.begin_suppress_tokens] = -math.inf
                tokens.append(int(last.argmax()))
                total, count = total + float(log_probs[tokens[-1]]), count + 1
        assert each.log_probability == pytest.approx(total / count, abs=1e-3)
    assert {each.language for each in found} == {None}


def test_a_transcript_that_is_broken_off_says_so(
    teacher: Teacher, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = read_audio(shared / "speech/prompts/test/agent-alreadyon.ogg")
    (whole,) = teacher.transcribe_with_scores([clip], "en")
    tokens = len(teacher._tokenizer(" " + whole.text, add_special_tokens=False).input_ids)
    assert tokens > 3
    for longest in (tokens + 1, tokens - 1):
        monkeypatch.setattr("dqlora.models.whisper.LONGEST", longest)
        (found,) = teacher.transcribe_with_scores([clip], "en")
        assert found.ended == (found.text == whole.text) == (longest > tokens)


def test_the_probability_of_the_language_is_that_among_languages(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a teacher that says it knows two: both probabilities make one, and the prompt names language and task."""
    ids = {f"<|{code}|>": teacher._tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in ("en", "fr")}
    task = {"transcribe": teacher._tokenizer.convert_tokens_to_ids("<|transcribe|>")}
    for name, value in (("is_multilingual", True), ("lang_to_id", ids), ("task_to_id", task)):
        monkeypatch.setattr(teacher.model.generation_config, name, value, raising=False)
    prompts: list[list[int]] = []
    forward = teacher.model.forward

    def noted(**inputs: torch.Tensor) -> object:
        prompts.append(inputs["decoder_input_ids"][0].tolist())
        return forward(**inputs)

    monkeypatch.setattr(teacher.model, "forward", noted)
    with torch.inference_mode():
        encoded = BaseModelOutput(last_hidden_state=teacher._encoder(teacher.log_mel([tone(1.0)])))
        tokens = torch.tensor([[640, 995, teacher.model.config.eos_token_id]])
        [(_, _, english)], [(_, _, french)] = (teacher._scores(tokens, encoded, code) for code in ("en", "fr"))
    assert english is not None and french is not None
    assert english + french == pytest.approx(1.0) and english != french
    start, end = teacher.model.config.decoder_start_token_id, teacher.model.generation_config.no_timestamps_token_id
    assert prompts[1] == [start, ids["<|fr|>"], task["transcribe"], end, 640, 995]
