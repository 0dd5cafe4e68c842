"""Errors of Hydra and OmegaConf as one sentence for users: key=value, the reason and what to do."""

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from capsule_sweeps.config.schema import Config

KINDS = {  # what OmegaConf says of a wrong type → what it must be
    "converted to Integer": "it must be an integer",
    "converted to Float": "it must be a number",
    "not a valid bool": "it must be true or false",
    "is not Optional": "null is not possible here",
}


@contextmanager
def one_sentence() -> Iterator[None]:
    """While open, what Hydra, OmegaConf and YAML raise becomes a ValueError of one sentence."""
    from hydra.errors import HydraException
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error)) from error
    except YAMLError as error:
        raise ValueError(f"a file of the configuration is not readable: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(
            "the configuration is not readable: an override or a file has too many brackets or levels within each "
            "other, or files name each other in their defaults"
        ) from error


def sentence(error: BaseException) -> str:
    """The error in one line."""
    from hydra.errors import MissingConfigException, OverrideParseException

    causes = (error, error.__cause__, error.__context__)
    cause = next((one for one in causes if isinstance(one, OmegaConfBaseException)), error)
    text = " ".join(re.split(r"\n    full_key:|Config search path:", str(cause))[0].split())
    text = text.removeprefix("ValueError raised while resolving interpolation: ")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} is unknown: {_suggest(option, error.options, f'{group}=')}"
    if isinstance(error, OverrideParseException):
        text = re.sub(r"\s*See https?://.*", "", text)
        text = "it has characters that Hydra reads as syntax" if "LexerNoViableAlt" in text else text
        word = error.override
        return f"{word} is not readable ({text}); quote values with special characters: {_quoted(word)}"
    if outside := re.match(r"In '([^']+)': Could not override '.*@\w+\.", str(error)):
        return f"conf/{outside[1]}.yaml must begin with the line `# @package _global_`"
    if "merge DictConfig with ListConfig" in text or "merge ListConfig with DictConfig" in text:
        wrong = "keys where a list belongs" if text.startswith("Cannot merge D") else "a list where keys belong"
        file = _origin(str(error))[0].removeprefix("in ").rstrip(", ") or "a file of the configuration"
        return f"{file} has {wrong}, such as hydra.sweeper.points, a list: [{{model: resnet18}}]"
    if "hydra.mode changed" in text:  # Hydra 1.4
        return "this experiment is a sweep: add -m behind launch.py"
    if several := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        key = several[1].partition("=")[0]
        return (
            f"{several[1]} has several values: add -m (--multirun) to sweep over them, set a list, {key}=[…], or quote "
            f"one value that has commas: {_quoted(several[1])}"
        )
    if re.search("Could not (find|load) 'hydra/sweeper/optuna'", text):
        return "hydra/sweeper=search needs a package that is not installed: pip install hydra-optuna-sweeper"
    if missing := re.match(r"In '([^']+)': Could not (?:find|load) '([^']+)'", str(error)):
        return f"{missing[1]}.yaml names {missing[2]} in its defaults, which is unknown: correct the name"
    source, word = _origin(str(error))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and "not" in text:
        key, parent = str(cause.full_key or word.partition("=")[0]), cause.parent_node
        key = key if "'Config'" in text else _in_a_layer(key)
        if re.match(r"model\.(backbone|capsules|routing)\.", key):
            return f"{source}{word or key} is not a key of the model: set {(word or key).removeprefix('model.')}"
        known = OmegaConf.to_container(parent) if OmegaConf.is_dict(parent) else None  # None also for one that is null
        header = re.match(r"(\w+)/", source.removeprefix("in conf/"))
        if header and key == header[1]:  # no key of the configuration has the name of a group of experiments
            return f"{source.rstrip(', ').removeprefix('in ')} must begin with the line `# @package _global_`"
        return source + unknown(word if word.startswith(f"{key}=") else key, map(str, known or ()))
    if word and cause is not error:
        said = [words for kind, words in KINDS.items() if re.search(kind, text)]
        several = re.match(r"([\w.]+=)\[(.*)\]$", word)
        sweep = f"; to sweep over values, write {several[1]}{several[2]}" if several and said else ""
        return f"{source}{word} is invalid: {said[0] if said else text}{sweep}"
    full_key = str(getattr(cause, "full_key", None) or "")
    full_key = _in_a_layer(full_key) if "'Config'" not in text else full_key
    value = re.match(r"Value '(.*)' of type '.*' could not be (converted to \w+)", text)
    if full_key and value and value[2] in KINDS:
        return f"{full_key}={value[1]} is invalid: {KINDS[value[2]]}"
    return f"{full_key}: {text}" if full_key and full_key not in text else text


def _quoted(word: str) -> str:
    """An override quoted for a shell and for Hydra."""
    key, _, value = word.partition("=")
    value = re.sub(r"""^(['"])(.*)\1$""", r"\2", value).replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{value}"')


def _origin(text: str) -> tuple[str, str]:
    """Which file ("In conf/…: ") and which override (key=value) a message of Hydra names; empty where it names none."""
    file = re.match(r"In '([^']+)':", text)
    word = re.search(r"(?:merging override|config use) [+~]*(.+)", text)
    return f"in conf/{file[1]}.yaml, " if file else "", word[1] if word else ""


def _in_a_layer(key: str) -> str:
    """The full key of an item of a list, which OmegaConf does not report."""
    top = re.split(r"[.\[]", key)[0]
    return f"capsules.layers.*.{key}" if key and top not in {*Config.__dataclass_fields__, "hydra"} else key


def unknown(word: str, keys: Iterable[str]) -> str:
    """That a key, or key=value, is none of the keys beside it."""
    prefix, dot, key = word.partition("=")[0].rpartition(".")
    return f"{word} is unknown: {_suggest(key, keys, prefix + dot)}"


def _suggest(name: str, known: Iterable[str], prefix: str) -> str:
    known = sorted(key for key in known if key[:1] != "_" and key != "hydra")
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    start = f"did you mean {prefix}{close[0]}? " if close else ""
    return f"{start}{prefix.rstrip('=.') or 'the configuration'} has {', '.join(known) or 'no keys'}"
