# Each target is a script that can be run by hand.
.PHONY: run test build bench lint wheel

run: build
	.venv/bin/python -m gwcore

test:
	ci/test.sh

build:
	ci/build.sh

bench: build
	bench/run.sh

lint: build
	ci/lint.sh

wheel:
	ci/wheel.sh
