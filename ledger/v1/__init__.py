"""The gRPC contract as Python code. All but this line is generated from proto/ledger/v1: run `make proto`."""
