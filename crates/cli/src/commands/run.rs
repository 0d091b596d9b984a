//! `ocelli run`: a conversation, about pictures where the model sees.

use crate::boxes::{DrawArgs, Drawing, Frame};
use crate::failure::Failure;
use crate::global::Global;
use crate::interrupt;
use crate::memory::Bound;
use crate::output::{self, Output};
use crate::pictures::{self, Reading};
use crate::sampling::SamplingArgs;
use crate::session::{self, ModelArgs};
use crate::template::{Form, TemplateArgs};
use crate::videos::VideoArgs;
use crate::written::Written;
use ocelli_data::image::Processor;
use ocelli_data::text::{Tokenizer, Turn};
use ocelli_models::Work;
use ocelli_models::generate::{Flow, Sampling, Settings, Strategy};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::systems::talker::{Conversation, Talker, text_ids};
use ocelli_tensor::Tensor;
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write, stderr, stdin};
use std::path::{Path, PathBuf};

/// How freely answers are drawn where nothing is said, as in LLaVA's own chat.
const TEMPERATURE: f32 = 0.2;
/// Tokens of an answer where nothing is said.
const USUAL_TOKENS: usize = 512;
/// Tokens of a first message, for the need of memory.
const MESSAGE: usize = 256;

const COMMANDS: &str = "\
/image PATH  show a picture with the next message
/clear       forget the conversation and its pictures
/save FILE   write the conversation as JSON
/help        this list
/exit        leave, as Ctrl-D does; Ctrl-C ends an answer";

/// Talk with a model, about pictures if it sees
///
/// With -i one question is answered; without it each line is a message, and lines that begin with / are commands: /image PATH, /clear, /save FILE, /help, /exit. Ctrl-C ends an answer and keeps what was said.
#[derive(clap::Args)]
#[command(mut_arg("model", session::required))]
#[command(after_help = "\
Examples:
  ocelli run -m llava-hf/llava-1.5-7b-hf --quant q4_0 --image photo.jpg
  ocelli run -m llava/ --image a.jpg --image b.jpg -i 'What changed?' --temperature 0
  ocelli run -m SmolLM2-135M-Instruct.Q4_1.gguf --system 'Answer in one sentence.'")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Picture to show with the first message; may be given several times
    #[arg(long, value_name = "IMG", aliases = ["image-file", "image_file"])]
    image: Vec<PathBuf>,
    #[command(flatten)]
    videos: VideoArgs,
    /// Message to answer; without it, a chat
    #[arg(short = 'i', long, value_name = "TEXT", alias = "query", short_alias = 'p')]
    prompt: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let source = session::find(global, &args.model)?;
    let tokenizer = source.language_tokenizer();
    let own = tokenizer.as_ref().map_or(Ok(None), |tokenizer| source.chat_template(tokenizer));
    let processor = source.processor();
    let end_tokens = source.end_tokens()?;
    let (texts, new) = args.sampling.extent(USUAL_TOKENS);
    let pictures = args.image.len().max(1) * args.videos.most();
    let work = |written| Work { texts, read: MESSAGE, written, pictures };
    let bound = Bound { option: "-n", most: new, work: &work };
    let session = source.open_within(global, &bound)?;
    args.videos.check(&session)?;
    let talker = session.opened.model.talker();
    let Some(language) = talker.map(Talker::language).or(session.opened.model.causal()) else {
        return Err(session.unsuitable("a conversation", "a LLaVA, a MiniGPT or a language model"));
    };
    let drawing = Drawing::new(&session, &args.draw, false)?;
    let tokenizer = session.fitting(tokenizer?)?;
    let form = args.template.form(&tokenizer, talker, own?)?;
    let eyes = match talker {
        Some(talker) => Some((talker, processor?)),
        None => None,
    };
    let drawn = Sampling { temperature: TEMPERATURE, ..Sampling::default() };
    let usual = Settings {
        strategy: Strategy::Sample(drawn),
        ..Settings::greedy(USUAL_TOKENS, &end_tokens)
    };
    let mut settings = args.sampling.settings(&usual)?;
    if settings.eos.is_empty() {
        settings.eos.extend(tokenizer.named().end);
    }
    let stops = args.sampling.stop.iter().cloned();
    let mut chat = Chat {
        language,
        eyes,
        tokenizer: &tokenizer,
        videos: args.videos,
        drawing,
        settings,
        stops: stops.chain(form.stops()).collect(),
        form,
        turns: Vec::new(),
        shown: Vec::new(),
        next: Vec::new(),
        conversation: Conversation::new(language),
        out: Output::new(),
    };
    for path in &pictures::listed(&args.image) {
        chat.show(path)?;
    }
    interrupt::watch();
    match &args.prompt {
        Some(prompt) => {
            chat.say(prompt)?;
            if interrupt::asked() { Err(Failure::interrupted()) } else { Ok(()) }
        }
        None => chat.talk(),
    }
}

/// A picture of the conversation.
struct Shown {
    path: PathBuf,
    /// `[image tokens, width]`.
    tokens: Tensor,
    frame: Frame,
}

/// A conversation with all that it needs.
struct Chat<'a> {
    language: &'a dyn CausalModel,
    /// What brings pictures to it, if it can be shown any.
    eyes: Option<(&'a dyn Talker, Processor)>,
    tokenizer: &'a Tokenizer,
    videos: VideoArgs,
    drawing: Drawing<'a>,
    form: Form,
    settings: Settings,
    stops: Vec<String>,
    turns: Vec<Turn>,
    shown: Vec<Shown>,
    /// Pictures for the next message.
    next: Vec<Shown>,
    conversation: Conversation,
    out: Output,
}

/// What a line asks for.
enum Line<'a> {
    Say(&'a str),
    Image(&'a str),
    Save(&'a str),
    Clear,
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn new(line: &'a str) -> Self {
        let line = line.trim();
        if !line.starts_with('/') {
            return Self::Say(line);
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("/image", path) => Self::Image(path),
            ("/save", path) => Self::Save(path),
            ("/clear", "") => Self::Clear,
            ("/help", _) => Self::Help,
            ("/exit" | "/quit", _) => Self::Exit,
            _ => Self::Unknown(command),
        }
    }
}

#[derive(Serialize)]
struct Saved<'a> {
    template: &'a str,
    images: Vec<String>,
    turns: Vec<SavedTurn<'a>>,
}

#[derive(Serialize)]
struct SavedTurn<'a> {
    user: &'a str,
    answer: Option<&'a str>,
}

impl Chat<'_> {
    /// Reads lines until there are no more. What goes wrong with one is said, and the next is read; of
    /// a pipe the first failure is what the command ends with.
    fn talk(&mut self) -> Result<(), Failure> {
        let is_terminal = stdin().is_terminal();
        if is_terminal {
            tell(&format!("template {}; /help lists the commands", self.form.name()));
        }
        let (mut input, mut line) = (stdin().lock(), Vec::new());
        let mut first = Ok(());
        loop {
            // What ended the last answer does not count any more.
            interrupt::forget();
            if is_terminal {
                self.out.text("> ")?;
                self.out.flush()?;
            }
            line.clear();
            interrupt::wait(is_terminal);
            let read = input.read_until(b'\n', &mut line);
            interrupt::wait(false);
            if read.map_err(|e| Failure::input(format!("standard input: {e}")))? == 0 {
                break;
            }
            interrupt::forget();
            let done = match std::str::from_utf8(&line) {
                Ok(line) => self.obey(&Line::new(line)),
                Err(_) => Err(Failure::input("a line is not UTF-8 and was not read; say it again")),
            };
            match done {
                Ok(true) => {}
                Ok(false) => return first,
                Err(failure) => {
                    failure.report();
                    if !is_terminal && first.is_ok() {
                        first = Err(failure.reported());
                    }
                }
            }
        }
        if is_terminal {
            self.out.text("\n")?;
        }
        first
    }

    /// Does what a line asks for. False ends the conversation.
    fn obey(&mut self, line: &Line) -> Result<bool, Failure> {
        match *line {
            Line::Say("") => {}
            Line::Say(text) => self.say(text)?,
            Line::Image("") => return Err(Failure::usage("/image needs a path")),
            Line::Image(path) => {
                self.show(Path::new(path))?;
                tell(&format!("{path} is shown with the next message"));
            }
            Line::Save("") => return Err(Failure::usage("/save needs a file")),
            Line::Save(path) => self.save(Path::new(path))?,
            Line::Clear => {
                self.clear();
                tell("the conversation is forgotten");
            }
            Line::Help => tell(COMMANDS),
            Line::Exit => return Ok(false),
            Line::Unknown(command) => {
                return Err(Failure::usage(format!("{command} is no command; /help lists them")));
            }
        }
        Ok(true)
    }

    /// Reads a picture for the next message.
    fn show(&mut self, path: &Path) -> Result<(), Failure> {
        let Some((talker, processor)) = &self.eyes else {
            let what = "the model reads text alone; a LLaVA or a MiniGPT can be shown pictures";
            return Err(Failure::usage(what));
        };
        let (pixels, frame) = pictures::one(path, Reading::of(self.videos), processor)?;
        for tokens in talker.pictures(&pixels)? {
            self.next.push(Shown { path: path.to_owned(), tokens, frame });
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.turns.clear();
        self.shown.clear();
        self.next.clear();
        self.conversation = Conversation::new(self.language);
    }

    /// Says something and writes the answer as it comes. If there is none, nothing was said.
    fn say(&mut self, text: &str) -> Result<(), Failure> {
        let (turns, shown) = (self.turns.len(), self.shown.len());
        self.turns.extend(self.form.show(self.next.len(), text));
        self.shown.append(&mut self.next);
        let answer = self.answer();
        match answer {
            Ok(answer) => {
                let boxes =
                    self.shown.last().map(|s| (self.drawing.read(&answer, s.frame), &s.path));
                if let Some(turn) = self.turns.last_mut() {
                    turn.answer = Some(answer);
                }
                boxes.map_or(Ok(()), |(boxes, path)| self.drawing.show(&boxes, path))
            }
            Err(failure) => {
                self.turns.truncate(turns);
                self.next = self.shown.split_off(shown);
                Err(failure)
            }
        }
    }

    fn answer(&mut self) -> Result<String, Failure> {
        let text = self.form.render(&self.turns)?;
        let ids = match self.eyes {
            Some((talker, _)) => talker.ids(self.tokenizer, &text),
            None => text_ids(self.tokenizer, &text),
        };
        let pictures: Vec<Tensor> = self.shown.iter().map(|s| s.tokens.clone()).collect();
        let mut written = Written::new(self.tokenizer, &self.stops);
        let (out, mut broken, mut has_begun) = (&mut self.out, None, false);
        let mut write = |text: &str| {
            // What stands between the role and the answer is not part of it.
            let text = if has_begun { text } else { text.trim_start() };
            has_begun |= !text.is_empty();
            out.written(text).and_then(|()| out.flush())
        };
        self.conversation.answer(self.language, &ids, &pictures, &self.settings, &mut |id| {
            broken = write(written.push(id)).err();
            if broken.is_some() || written.is_over() || interrupt::asked() {
                Flow::Stop
            } else {
                Flow::Continue
            }
        })?;
        if let Some(failure) = broken {
            return Err(failure);
        }
        write(written.finish())?;
        self.out.text("\n")?;
        self.out.flush()?;
        Ok(written.text().trim().to_owned())
    }

    /// Writes the conversation to a file, whole or not at all.
    fn save(&self, path: &Path) -> Result<(), Failure> {
        let saved = Saved {
            template: self.form.name(),
            images: self.shown.iter().map(|s| s.path.display().to_string()).collect(),
            turns: self
                .turns
                .iter()
                .map(|t| SavedTurn { user: &t.user, answer: t.answer.as_deref() })
                .collect(),
        };
        let text = serde_json::to_string_pretty(&saved).expect("texts are JSON");
        output::write_file(path, (text + "\n").as_bytes())?;
        tell(&format!("{} turns in {}", self.turns.len(), path.display()));
        Ok(())
    }
}

/// Says something that is not part of the conversation.
fn tell(text: &str) {
    // Nobody is left to be told of a terminal that is gone.
    let _ = writeln!(stderr(), "{text}");
}
