"""The names under which hosts announce themselves in the DHT.

A key is short (py-libp2p refuses provider keys over 80 bytes) and tells an observer no model name in the clear,
though whoever guesses a name can compute its key. Who provides a key is only a hint: ghosts stay listed until their
records expire, so a requester contacts everyone and believes only what it is told then.
"""

from __future__ import annotations

import hashlib

from edgellm.types.advert import HostAdvert

HOSTS_KEY = "/edgellm/hosts/1"
"""Every host, whatever it offers."""


def model_key(model: str) -> str:
    """The key for hosts of `model`, a name or a manifest digest."""
    return "/edgellm/model/1/" + hashlib.sha256(model.encode()).hexdigest()[:40]


def keys_of(advert: HostAdvert) -> tuple[str, ...]:
    """All under which the host of `advert` announces itself."""
    names = [name for offer in advert.models for name in (offer.name, offer.digest)]
    return tuple(dict.fromkeys((HOSTS_KEY, *(model_key(name) for name in names))))
