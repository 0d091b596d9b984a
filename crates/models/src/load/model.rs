//! A model of any kind, and what it can do.

use crate::Result;
use crate::connector::abstractor::Abstractor;
use crate::connector::flamingo::FlamingoParts;
use crate::connector::position_resampler::PositionResampler;
use crate::connector::qformer::QFormer;
use crate::language::bert::Bert;
use crate::language::causal::CausalModel;
use crate::language::chatglm::ChatGlm;
use crate::language::gpt_neox::GptNeox;
use crate::language::gpt2::Gpt2;
use crate::language::llama::Llama;
use crate::language::mpt::Mpt;
use crate::language::opt::Opt;
use crate::language::t5::T5;
use crate::systems::blip::Blip;
use crate::systems::blip2::Blip2;
use crate::systems::clip::Clip;
use crate::systems::flamingo::Flamingo;
use crate::systems::lit::Lit;
use crate::systems::llava::Llava;
use crate::systems::matcher::Matcher;
use crate::systems::minigpt4::MiniGpt4;
use crate::systems::mplug_owl::MplugOwl;
use crate::systems::qwen_vl::QwenVl;
use crate::systems::talker::Talker;
use crate::systems::visualglm::{ImageEncoder, VisualGlm};
use crate::systems::writer::Writer;
use crate::systems::xcomposer::XComposer;
use crate::vision::clip_vit::ClipVit;
use crate::vision::eva_vit::EvaVit;
use crate::vision::local_vit::LocalVit;
use crate::vision::nfnet::NfNet;
use crate::vision::resnet_v2::HybridVit;
use crate::vision::vit::Vit;
use ocelli_tensor::Tensor;

/// Turns normalised pixels `[batch, 3, img_h, img_w]` into vectors `[batch, width]`.
pub type PictureEncoder<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// A model of any kind.
#[derive(Debug)]
pub enum Model {
    /// A ViT with or without a head.
    Vit(Box<Vit>),
    /// A ViT on the feature map of a ResNet.
    Hybrid(Box<HybridVit>),
    /// A ViT with local or axial attention.
    LocalVit(Box<LocalVit>),
    /// An NFNet.
    NfNet(Box<NfNet>),
    /// A CLIP.
    Clip(Box<Clip>),
    /// A BERT.
    Bert(Box<Bert>),
    /// A LiT.
    Lit(Box<Lit>),
    /// A LLaMA.
    Llama(Box<Llama>),
    /// A GPT-2.
    Gpt2(Box<Gpt2>),
    /// An OPT.
    Opt(Box<Opt>),
    /// A GPT-NeoX.
    GptNeox(Box<GptNeox>),
    /// An MPT.
    Mpt(Box<Mpt>),
    /// The tower of EVA-CLIP.
    EvaVit(Box<EvaVit>),
    /// The trunk of CLIP's tower.
    ClipVit(Box<ClipVit>),
    /// A Q-Former.
    QFormer(Box<QFormer>),
    /// A resampler, a gated cross attention, or both.
    FlamingoParts(Box<FlamingoParts>),
    /// A BLIP.
    Blip(Box<Blip>),
    /// A BLIP-2 or an InstructBLIP.
    Blip2(Box<Blip2>),
    /// A T5.
    T5(Box<T5>),
    /// A LLaVA.
    Llava(Box<Llava>),
    /// A Flamingo.
    Flamingo(Box<Flamingo>),
    /// A MiniGPT-4 or a MiniGPT-v2.
    MiniGpt4(Box<MiniGpt4>),
    /// An mPLUG-Owl.
    MplugOwl(Box<MplugOwl>),
    /// The abstractor of an mPLUG-Owl.
    Abstractor(Box<Abstractor>),
    /// A Qwen-VL.
    QwenVl(Box<QwenVl>),
    /// The adapter of a Qwen-VL.
    PositionResampler(Box<PositionResampler>),
    /// A VisualGLM.
    VisualGlm(Box<VisualGlm>),
    /// What sees in a VisualGLM.
    ImageEncoder(Box<ImageEncoder>),
    /// A `ChatGLM`.
    ChatGlm(Box<ChatGlm>),
    /// An InternLM-XComposer.
    XComposer(Box<XComposer>),
}

impl Model {
    /// What the model is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vit(_) => "a ViT",
            Self::Hybrid(_) => "a hybrid ViT",
            Self::LocalVit(_) => "a local ViT",
            Self::NfNet(_) => "an NFNet",
            Self::Clip(_) => "a CLIP",
            Self::Bert(_) => "a BERT",
            Self::Lit(_) => "a LiT",
            Self::Llama(_) => "a LLaMA",
            Self::Gpt2(_) => "a GPT-2",
            Self::Opt(_) => "an OPT",
            Self::GptNeox(_) => "a GPT-NeoX",
            Self::Mpt(_) => "an MPT",
            Self::EvaVit(_) => "the tower of an EVA-CLIP",
            Self::ClipVit(_) => "the trunk of a CLIP",
            Self::QFormer(_) => "a Q-Former",
            Self::FlamingoParts(_) => "parts of a Flamingo",
            Self::Blip(_) => "a BLIP",
            Self::Blip2(_) => "a BLIP-2",
            Self::T5(_) => "a T5",
            Self::Llava(_) => "a LLaVA",
            Self::Flamingo(_) => "a Flamingo",
            Self::MiniGpt4(_) => "a MiniGPT-4",
            Self::MplugOwl(_) => "an mPLUG-Owl",
            Self::Abstractor(_) => "the abstractor of an mPLUG-Owl",
            Self::QwenVl(_) => "a Qwen-VL",
            Self::PositionResampler(_) => "the adapter of a Qwen-VL",
            Self::VisualGlm(_) => "a VisualGLM",
            Self::ImageEncoder(_) => "the eyes of a VisualGLM",
            Self::ChatGlm(_) => "a ChatGLM",
            Self::XComposer(_) => "an InternLM-XComposer",
        }
    }

    /// What turns each picture into a vector, if the model does. A ViT gives its pooled features. The
    /// lengths of the vectors are not 1.
    pub fn picture_encoder(&self) -> Option<PictureEncoder<'_>> {
        Some(match self {
            Self::Vit(vit) => Box::new(|pixels| vit.pool(&vit.features(pixels)?)),
            Self::Hybrid(hybrid) => Box::new(|pixels| {
                let map = hybrid.backbone.forward(pixels)?;
                hybrid.vit.pool(&hybrid.vit.features(&map)?)
            }),
            Self::LocalVit(vit) => Box::new(|pixels| vit.pool(&vit.features(pixels)?)),
            Self::NfNet(model) => Box::new(|pixels| model.pooled(pixels)),
            Self::Clip(clip) => Box::new(|pixels| clip.encode_image(pixels)),
            Self::Lit(lit) => Box::new(|pixels| lit.encode_image(pixels)),
            Self::Blip(blip) => Box::new(|pixels| blip.embed_images(&blip.image_tokens(pixels)?)),
            _ => return None,
        })
    }

    /// What writes about pictures, if the model does.
    pub fn writer(&self) -> Option<&dyn Writer> {
        match self {
            Self::Blip(model) => Some(&**model),
            Self::Blip2(model) if model.config().writing.is_some() => Some(&**model),
            Self::Llava(model) => Some(&**model),
            Self::Flamingo(model) => Some(&**model),
            Self::MiniGpt4(model) => Some(&**model),
            Self::MplugOwl(model) => Some(&**model),
            Self::QwenVl(model) => Some(&**model),
            Self::VisualGlm(model) => Some(&**model),
            Self::XComposer(model) => Some(&**model),
            _ => None,
        }
    }

    /// What talks about pictures, if the model does.
    pub fn talker(&self) -> Option<&dyn Talker> {
        match self {
            Self::Llava(model) => Some(&**model),
            Self::Flamingo(model) => Some(&**model),
            Self::MiniGpt4(model) => Some(&**model),
            Self::MplugOwl(model) => Some(&**model),
            Self::QwenVl(model) => Some(&**model),
            Self::VisualGlm(model) => Some(&**model),
            Self::XComposer(model) => Some(&**model),
            _ => None,
        }
    }

    /// What reads pictures and texts together, if the model does.
    pub fn matcher(&self) -> Option<&dyn Matcher> {
        match self {
            Self::Blip(model) => Some(&**model),
            Self::Blip2(model) if model.config().matching.is_some() => Some(&**model),
            _ => None,
        }
    }

    /// The language model that this is, if it is one without an encoder.
    pub fn causal(&self) -> Option<&dyn CausalModel> {
        match self {
            Self::Llama(model) => Some(&**model),
            Self::Gpt2(model) => Some(&**model),
            Self::Opt(model) => Some(&**model),
            Self::ChatGlm(model) => Some(&**model),
            Self::GptNeox(model) => Some(&**model),
            Self::Mpt(model) => Some(&**model),
            _ => None,
        }
    }
}
