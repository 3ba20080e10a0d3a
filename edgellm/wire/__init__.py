"""Generated protobuf and gRPC code; the sources are in proto/, `make proto` writes these files."""
