"""The commands, and the page that `granville help` shows of them."""

from __future__ import annotations

from granville.cli.commands import Command, command_table, status_table
from granville.config import DEFAULT_HTTP_PORT, DEFAULT_SOCKET

COMMANDS = (
    Command("serve", "MODEL...", "Start the daemon with one model or several.", "granville.cli.serve:serve"),
    Command("submit", "TEXT", "Ask the daemon once, and print the answer.", "granville.cli.submit:submit"),
    Command("chat", "", "Talk with a model in the terminal.", "granville.cli.chat:chat"),
    Command("transcribe", "FILE", "Print what is said in a recording.", "granville.cli.speech:transcribe"),
    Command("speak", "TEXT", "Have a text spoken, into a WAV file or to a player.", "granville.cli.speech:speak"),
    Command("status", "[ID]", "Show the daemon and its models, or one job.", "granville.cli.status:status"),
    Command("load", "MODEL", "Have the daemon load one model more.", "granville.cli.pool:load"),
    Command("unload", "ID", "Have the daemon unload a model.", "granville.cli.pool:unload"),
    Command(
        "download", "MODEL", "Fetch a model, so that serving it needs no network.", "granville.cli.download:download"
    ),
    Command("models", "", "List the models on this disk.", "granville.cli.models:models"),
    Command("models list", "", "The same.", "granville.cli.models:models"),
    Command(
        "models show", "NAME", "Show all about one, and the memory that it needs.", "granville.cli.models_show:show"
    ),
    Command(
        "models verify",
        "[NAME...]",
        "Compare files with what they should be.",
        "granville.cli.models_verify:verify",
    ),
    Command("models remove", "NAME", "Remove one, or unfinished downloads.", "granville.cli.models_remove:remove"),
    Command(
        "models tune", "MODEL", "Find the format and settings in which it is fastest here.", "granville.cli.tune:tune"
    ),
    Command("driver", "COMMAND", "Drivers, which run models: the next lines.", "granville.cli.driver:driver"),
    Command("driver install", "WHAT", "Install one, or another version of it.", "granville.cli.driver:install"),
    Command("driver list", "", "List those that are there.", "granville.cli.driver:list_drivers"),
    Command("driver remove", "NAME", "Remove one.", "granville.cli.driver:remove"),
    Command(
        "driver publish",
        "FOLDER",
        "Release one for others to install.",
        "granville.cli.driver_publish:publish",
    ),
    Command("driver keygen", "FILE", "Make a key to sign releases with.", "granville.cli.driver_publish:keygen"),
    Command(
        "driver check", "DRIVER", "See whether a driver keeps to the interface.", "granville.cli.driver_check:check"
    ),
    Command(
        "driver new", "NAME", "Write a working driver to start from, in C or Python.", "granville.cli.driver_new:new"
    ),
    Command("doctor", "", "Look at this machine: what it has, and what to set.", "granville.cli.doctor:doctor"),
    Command("bench", "MODEL", "Measure a model on this machine.", "granville.cli.bench:bench"),
    Command("help", "[COMMAND]", "Show this page, or a command's options."),
    Command("version", "", "Show the version."),
)


def page() -> str:
    """The whole page, as text."""
    return f"""\
Granville: one daemon that owns the models on a machine and serves every program there.

USAGE
  granville COMMAND [OPTIONS]
  granville COMMAND --help          the options of a command

COMMANDS
{command_table(COMMANDS)}

EXAMPLES
  granville serve smollm2           fetch the small default model once, and serve it
  granville serve smollm2,ranker:tiny.gguf --strategy round-robin
  granville submit "What is a kernel?" --stream
  git diff | granville submit - --priority high --max-tokens 80
  granville serve smollm2,stt:whisper-tiny.en,tts:joe
  granville transcribe question.wav; granville speak "Good morning." --out morning.wav
  granville chat --system "Answer in one sentence."
  granville models show smollm2     what it is, and the memory that it needs
  granville driver install acme-granville-tpu==1.2
  granville serve --manifest .      the models and settings of ./manifest.yaml
  granville doctor                  what this machine has, and what to set
  granville status                  what waits, what runs, and how fast

ENVIRONMENT
  Every option has a variable of its name; the command line goes before it.
  GRANVILLE_SOCKET      --socket, where the daemon listens ({DEFAULT_SOCKET})
  GRANVILLE_PORT        --port of its HTTP status on 127.0.0.1 ({DEFAULT_HTTP_PORT})
  GRANVILLE_HTTP        false for --no-http
  GRANVILLE_MAX_TOKENS  --max-tokens, and so on
  GRANVILLE_HOME        where models and drivers are kept (~/.granville)
  HF_TOKEN, HF_ENDPOINT the token for a model hub, and the hub (https://huggingface.co)

EXIT STATUS
{status_table()}
"""
