"""Which languages a Whisper knows, and by what codes."""

from typing import Any

ENGLISH = "en"
# ISO 639 codes for which Whisper has its own (openai/whisper, tokenizer.py); it keeps an old one for Javanese.
OWN_CODES = {"nb": "no", "jv": "jw", "fil": "tl", "cmn": "zh"}


def whisper_language(language: str) -> str:
    """Whisper's code of an ISO 639 language."""
    return OWN_CODES.get(language, language)


def known_languages(generation_config: dict[str, Any]) -> set[str]:
    """Whisper's codes of what a checkpoint with these generation settings knows."""
    if not generation_config["is_multilingual"]:
        return {ENGLISH}
    return {token.strip("<|>") for token in generation_config["lang_to_id"]}
