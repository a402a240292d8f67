"""The container recipes: the README's commands, on the whole repository, the same in both. Nothing is built here."""

import re

from tests.runs import REPOSITORY

DOCKERFILE = (REPOSITORY / "slurm/Dockerfile").read_text().replace("\\\n", " ")
DEFINITION = (REPOSITORY / "slurm/apptainer.def").read_text()


def section(name):
    return re.search(rf"^%{name}\n((?:    .*\n)+)", DEFINITION, flags=re.MULTILINE)[1].split("\n")


def run_by_docker():
    return re.findall(r"^RUN (bash .*|amos-fairseq .*)$", DOCKERFILE, flags=re.MULTILINE)


def test_they_install_by_the_two_commands_of_the_readme():
    block = (REPOSITORY / "README.md").read_text().partition("## Two commands")[2].split("```")[1]
    commands = re.findall(r"^(bash \S+)", block, flags=re.MULTILINE)
    assert [" ".join(line.split()[:2]) for line in run_by_docker()] == [*commands, "amos-fairseq doctor"]


def test_both_run_the_same_from_the_same_image():
    post = [line.strip() for line in section("post")]
    assert [line for line in post if line.startswith(("bash ", "amos-fairseq "))] == run_by_docker()
    (image,) = re.findall(r"^FROM (.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert f"Bootstrap: docker\nFrom: {image}\n" in DEFINITION
    packages = re.search(r"apt-get install (.+?)(?: &&|\n|$)", DOCKERFILE)[1].split()
    assert packages == re.search(r"apt-get install (.+)", DEFINITION)[1].split()


def test_both_hold_the_whole_repository():
    copied = [word for line in re.findall(r"^COPY (.+)$", DOCKERFILE, flags=re.MULTILINE) for word in line.split()[:-1]]
    assert [line.split()[0] for line in section("files") if line] == copied
    there = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    unwanted = {"runs", "outputs", "multirun", "build", "dist"} | {name for name in there if name.endswith(".egg-info")}
    assert there - unwanted == set(copied)
