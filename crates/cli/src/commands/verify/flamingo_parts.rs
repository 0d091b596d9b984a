//! Results of a Perceiver Resampler, of a gated cross attention, and of both.

use super::Computed;
use super::case::Case;
use super::gradients;
use crate::failure::Failure;
use ocelli_models::connector::flamingo::FlamingoParts;
use ocelli_models::connector::gated_xattn::{GatedCrossAttention, Sight, times};
use ocelli_models::connector::perceiver::PerceiverResampler;
use ocelli_tensor::{Tensor, no_grad};

pub(super) fn outputs(
    case: &Case,
    model: &FlamingoParts,
    computed: &mut Computed,
) -> Result<(), Failure> {
    match (&model.resampler, &model.gated) {
        (Some(resampler), Some(gated)) => both(case, resampler, gated, computed),
        (Some(resampler), None) => resampled(case, model, resampler, computed),
        (None, Some(gated)) => looked(case, model, gated, computed),
        (None, None) => Ok(()),
    }
}

/// The sum of the result, each value times a weight of the case.
pub(super) fn loss(case: &Case, model: &FlamingoParts) -> Result<Option<Tensor>, Failure> {
    let Some(x) = case.tensor("in/x")? else { return Ok(None) };
    weighted(case, model, &x, case.tensor("in/media")?.as_ref())
}

fn weighted(
    case: &Case,
    model: &FlamingoParts,
    x: &Tensor,
    media: Option<&Tensor>,
) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    let y = match (&model.resampler, &model.gated, media) {
        (Some(resampler), None, _) => resampler.forward(x)?,
        (None, Some(gated), Some(media)) => {
            gated.forward(x, &in_a_row(media)?, &sight(case, media, false)?)?
        }
        _ => return Ok(None),
    };
    Ok(Some(y.mul(&weight)?.sum()?))
}

fn resampled(
    case: &Case,
    model: &FlamingoParts,
    resampler: &PerceiverResampler,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(x) = case.tensor("in/x")? else { return Ok(()) };
    no_grad(|| {
        computed.insert("out/y".to_owned(), resampler.forward(&x)?);
        computed.extend(loss(case, model)?.map(|loss| ("out/loss".to_owned(), loss)));
        Ok::<(), Failure>(())
    })?;
    gradients::of_input(case, "x", &mut |x| weighted(case, model, x, None), computed)
}

fn looked(
    case: &Case,
    model: &FlamingoParts,
    gated: &GatedCrossAttention,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let (Some(x), Some(media)) = (case.tensor("in/x")?, case.tensor("in/media")?) else {
        return Ok(());
    };
    let keys = in_a_row(&media)?;
    no_grad(|| {
        let mut put = |name: &str, sight: &Sight| -> Result<(), Failure> {
            computed.insert(name.to_owned(), gated.forward(&x, &keys, sight)?);
            Ok(())
        };
        put("out/y", &sight(case, &media, false)?)?;
        put("out/y_attend_all_previous", &sight(case, &media, true)?)?;
        put("out/y_no_locations", &Sight::default())?;
        if let Some(new) = case.tensor("in/x_step")? {
            // New tokens come behind all pictures of the text.
            let [batch, tokens] = [new.shape()[0], new.shape()[1]];
            let all = all_times(case)?;
            let last = all.chunks(all.len() / batch).filter_map(<[u32]>::last);
            let behind: Vec<u32> = last.flat_map(|t| std::iter::repeat_n(*t, tokens)).collect();
            let [_, count, latents, _] = media.shape()[..] else { return Ok(()) };
            let sight = Sight::new(&behind, batch, count, latents, false)?;
            let memory = gated.remember(&keys, &vec![count * latents; batch])?;
            let y = gated.step(&new, &memory, &vec![tokens; batch], &sight)?;
            computed.insert("out/y_step_cached".to_owned(), y);
        }
        computed.extend(loss(case, model)?.map(|loss| ("out/loss".to_owned(), loss)));
        Ok::<(), Failure>(())
    })?;
    let mut of_x = |x: &Tensor| weighted(case, model, x, Some(&media));
    gradients::of_input(case, "x", &mut of_x, computed)?;
    let mut of_media = |media: &Tensor| weighted(case, model, &x, Some(media));
    gradients::of_input(case, "media", &mut of_media, computed)
}

fn both(
    case: &Case,
    resampler: &PerceiverResampler,
    gated: &GatedCrossAttention,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let (Some(x), Some(text)) = (case.tensor("in/x")?, case.tensor("in/text")?) else {
        return Ok(());
    };
    no_grad(|| {
        let &[batch, media, positions, width] = &x.shape()[..] else { return Ok(()) };
        let latents = resampler.forward(&x.reshape(&[batch, media, 1, positions, width])?)?;
        let sight = sight(case, &latents, false)?;
        let text = gated.forward(&text, &in_a_row(&latents)?, &sight)?;
        computed.insert("out/latents".to_owned(), latents);
        computed.insert("out/text".to_owned(), text);
        Ok(())
    })
}

/// `[batch, media, latents, width]` as `[batch, media latents, width]`.
fn in_a_row(media: &Tensor) -> Result<Tensor, Failure> {
    let &[batch, count, latents, width] = &media.shape()[..] else {
        return Err(Failure::input("expected media [batch, media, latents, width]"));
    };
    Ok(media.reshape(&[batch, count * latents, width])?)
}

/// What each token sees by `in/media_locations`.
fn sight(case: &Case, media: &Tensor, looks_back: bool) -> Result<Sight, Failure> {
    let &[batch, count, latents, _] = &media.shape()[..] else { return Ok(Sight::default()) };
    Ok(Sight::new(&all_times(case)?, batch, count, latents, looks_back)?)
}

fn all_times(case: &Case) -> Result<Vec<u32>, Failure> {
    let name = "in/media_locations";
    let locations = case.ids(name)?.ok_or_else(|| Failure::input(format!("{name} is missing")))?;
    let tokens = locations.len() / case.rows(name).max(1);
    let rows = locations.chunks(tokens.max(1));
    Ok(rows.flat_map(|row| times(row.iter().map(|place| *place != 0))).collect())
}
