FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends make bubblewrap nftables iproute2 && rm -rf /var/lib/apt/lists/*
WORKDIR /edgellm
COPY . .
RUN make setup
ENTRYPOINT [".venv/bin/edgellm"]
