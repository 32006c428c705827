"""Which folders make the package: all of ``alutils``, and ``profiles`` as its data. The rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["alutils", "alutils.*"]), "alutils.profiles"],
    package_dir={"alutils.profiles": "profiles"},
)
