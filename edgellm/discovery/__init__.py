"""Who lends what: provider records in the DHT lead to hosts, and each host tells its own signed, fresh advert.

keys       the names under which hosts announce themselves in the DHT
codec      HostAdvert <-> signed envelope
check      whether an advert may be believed (pure)
publish    a host's side: announce, and answer for the advert
known_hosts hosts that answered before, in a file
collect    a requester's side: find, ask, check, keep what is good and count what is not
patience   how long to wait for hosts that have not answered (pure)
versions   which versions of which models hosts offer (pure)

Uses `edgellm.p2p.network`; knows nothing of plans and leases.
"""
