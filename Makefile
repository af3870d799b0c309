# `make check` before every commit: format, lint, types, tests, doctests.
.PHONY: check format lint types test

check: format lint types test

format:
	ruff format --check .

lint:
	ruff check .

types:
	mypy

# Doctests too: pyproject.toml sets --doctest-modules.
test:
	pytest -n 2 --dist loadfile
