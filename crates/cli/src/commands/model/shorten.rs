//! Ways to shorten the sequence: what each costs at the sizes of a ViT.

use crate::failure::Failure;
use crate::table;
use ocelli_models::cost;
use ocelli_models::vision::local_vit::{LocalVit, LocalVitConfig, Neighbourhood};
use ocelli_models::vision::resnet_v2::{HybridVit, ResNetV2Config};
use ocelli_models::vision::vit::{Head, Vit, VitConfig};
use ocelli_nn::Builder;

/// Side of the local window, as in the paper on stand-alone attention.
const WINDOW: usize = 7;

/// A table of tokens, pairs, parameters and operations, for pictures of the size of `vit`.
pub(super) fn table(vit: &VitConfig) -> Result<String, Failure> {
    let (img_h, img_w) = vit.image_size;
    let mut rows = vec![
        ["tokens are", "each sees", "tokens", "pairs", "parameters", "GFLOP"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for patch_size in [1, vit.patch_size] {
        let what = if patch_size == 1 { "pixels".to_owned() } else { patches(patch_size) };
        rows.push(all_pairs(&what, &VitConfig { patch_size, ..vit.clone() })?);
        for neighbourhood in [Neighbourhood::Window(WINDOW), Neighbourhood::Axes] {
            if let Some(row) = local(&what, vit, patch_size, neighbourhood)? {
                rows.push(row);
            }
        }
    }
    rows.push(hybrid(vit)?);
    Ok(format!(
        "\nWays to shorten the sequence, for a picture of {img_w} x {img_h} pixels; pairs per head \
         and block:\n{}",
        table::columns(&rows)
    ))
}

fn patches(side: usize) -> String {
    format!("patches of {side} x {side}")
}

fn row(
    what: &str,
    sees: &str,
    tokens: usize,
    pairs: usize,
    parameters: usize,
    flops: u64,
) -> Vec<String> {
    let count = |n: usize| table::thousands(n as u64);
    let gflop = format!("{:.1}", flops as f64 / 1e9);
    vec![what.to_owned(), sees.to_owned(), count(tokens), count(pairs), count(parameters), gflop]
}

fn all_pairs(what: &str, config: &VitConfig) -> Result<Vec<String>, Failure> {
    let b = Builder::zeros();
    Vit::new(config, &b);
    let parameters = b.finish().map_err(ocelli_models::Error::from)?.elements();
    let (grid_h, grid_w) = config.grid(config.image_size);
    let tokens = config.tokens();
    Ok(row(what, "all", grid_h * grid_w, tokens * tokens, parameters, config.flops()))
}

fn local(
    what: &str,
    vit: &VitConfig,
    patch_size: usize,
    neighbourhood: Neighbourhood,
) -> Result<Option<Vec<String>>, Failure> {
    if !vit.width.is_multiple_of(2 * vit.heads) {
        return Ok(None);
    }
    let classes = match vit.head {
        Head::Classes(n) | Head::AverageClasses(n) => n,
        _ => 1,
    };
    let config = LocalVitConfig {
        image_size: vit.image_size,
        patch_size,
        width: vit.width,
        depth: vit.depth,
        heads: vit.heads,
        mlp_dim: vit.mlp_dim,
        neighbourhood,
        classes,
    };
    let b = Builder::zeros();
    LocalVit::new(&config, &b);
    let parameters = b.finish().map_err(ocelli_models::Error::from)?.elements();
    let (grid_h, grid_w) = config.grid();
    let (tokens, width, mlp_dim) = (grid_h * grid_w, vit.width, vit.mlp_dim);
    let (sees, attentions) = match neighbourhood {
        Neighbourhood::Window(side) => (format!("{side} x {side} window"), 1),
        Neighbourhood::Axes => ("column, row".to_owned(), 2),
    };
    let linear = tokens * width * (4 * attentions * width + 2 * mlp_dim);
    let first_and_last = tokens * 3 * patch_size * patch_size * width + classes * width;
    let per_block = (linear + 2 * config.pairs() * width) as u64;
    let flops = 2 * (vit.depth as u64 * per_block + first_and_last as u64);
    Ok(Some(row(what, &sees, tokens, config.pairs(), parameters, flops)))
}

fn hybrid(vit: &VitConfig) -> Result<Vec<String>, Failure> {
    let b = Builder::zeros();
    let model = HybridVit::new(&ResNetV2Config::r50(), vit, &b);
    let parameters = b.finish().map_err(ocelli_models::Error::from)?;
    let cost = cost::of_hybrid(&model, false);
    let patches = cost.tokens - usize::from(vit.has_class_token);
    Ok(row(
        "ResNet-50 positions",
        "all",
        patches,
        cost.tokens * cost.tokens,
        parameters.elements(),
        cost.operations,
    ))
}
