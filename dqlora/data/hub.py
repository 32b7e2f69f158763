"""The Hugging Face hub: whether it can be reached."""

import requests
from huggingface_hub import constants

TIMEOUT = 3.0  # s, to connect to each of its addresses and to answer


def hub_reachable() -> bool:
    """Whether the hub answers at all. Its own client tries for 23 s and more before it gives up."""
    if constants.is_offline_mode():
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=TIMEOUT)
    except requests.RequestException:
        return False
    return True
