"""Tests: `unit` (no engine, no root, fast), `integration` (real libp2p, cells, engine), `system` (separate hosts)."""
