//! Parameter names of checkpoint families.
//!
//! A family is one table: our name on the left, the family's on the right. `*` stands for one part
//! between dots and pairs with the `*` of the other side in order, or with a `+`, the number after it,
//! where the family counts from 1; `$` on our side is the number of the last block. `{a,b,c}` on the right names
//! several tensors that we hold as one, stacked along the first axis; `0` among them is a part that
//! the family has not, all zeros. `~` at the start of a right side is the family's optional prefix,
//! found in the file.

use std::borrow::Cow;

/// How the values of a family's tensor lie, compared with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same, but for axes of length 1 and merged axes.
    Same,
    /// A matrix, transposed; axes before and after this many are merged first.
    Transposed(usize),
    /// Filters `[height, width, in, out]` where ours are `[out, in, height, width]`.
    Hwio,
    /// Rows of heads of this many, where the two values that a rotary position turns together are
    /// neighbours; ours are half a head apart.
    Pairs(usize),
    /// Rows of heads of this many, each with its queries, keys and values one behind the other; ours
    /// are the queries of all heads, then the keys, then the values.
    HeadByHead(usize),
    /// Ours is the part of this number, of so many equal ones along the first axis of theirs.
    Part(usize, usize),
}

/// One row of a table.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    ours: &'static str,
    theirs: &'static str,
    layout: Layout,
    leading: usize,
}

/// The same tensor under another name.
pub const fn copy(ours: &'static str, theirs: &'static str) -> Name {
    Name { ours, theirs, layout: Layout::Same, leading: 0 }
}

/// Several tensors, `{a,b,c}`, that we hold as one.
pub const fn concat(ours: &'static str, theirs: &'static str) -> Name {
    copy(ours, theirs)
}

/// A matrix that the family holds transposed; its first `split` axes merge to rows.
pub const fn transpose(ours: &'static str, theirs: &'static str, split: usize) -> Name {
    Name { ours, theirs, layout: Layout::Transposed(split), leading: 0 }
}

impl Name {
    /// The family writes this many axes of length 1 before ours.
    #[must_use]
    pub const fn leading(self, leading: usize) -> Self {
        Self { leading, ..self }
    }

    /// The family holds the two values that a rotary position turns together as neighbours; see
    /// [`Names::with_head_dim`].
    #[must_use]
    pub const fn pairs(self) -> Self {
        Self { layout: Layout::Pairs(0), ..self }
    }

    /// The family holds queries, keys and values head by head; see [`Names::with_head_dim`].
    #[must_use]
    pub const fn head_by_head(self) -> Self {
        Self { layout: Layout::HeadByHead(0), ..self }
    }

    /// The family holds `of` of ours as one, stacked along the first axis; ours is number `part` of
    /// them. The parts of a tensor are made one behind the other.
    #[must_use]
    pub const fn part(self, part: usize, of: usize) -> Self {
        Self { layout: Layout::Part(part, of), ..self }
    }

    /// The family holds filters as `[height, width, in, out]`.
    #[must_use]
    pub const fn hwio(self) -> Self {
        Self { layout: Layout::Hwio, ..self }
    }
}

/// The name map of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Names {
    rules: Vec<Name>,
    prefix: String,
    /// Prefix of our own names that the table leaves out, such as `vision.`.
    root: String,
    /// Prefix of all the family's names that the table leaves out, such as `visual.trunk.`.
    their_root: String,
    ignored: Vec<Cow<'static, str>>,
    /// Values per head, for rows in pairs or head by head.
    head_dim: usize,
    /// The number of the last block.
    last: usize,
    /// What the family has between the number of a block and its parts; empty for nothing.
    block: &'static str,
}

/// What a parameter of ours is in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Tensors that stack up to ours; an empty name stands for zeros.
    pub(crate) theirs: Vec<String>,
    pub(crate) layout: Layout,
    pub(crate) leading: usize,
}

impl Names {
    /// Our own names, as training writes them.
    pub fn ours() -> Self {
        Self::default()
    }

    /// A family's table. `ignored` are patterns of tensors that carry nothing we need.
    pub fn family(rules: &[Name], ignored: &[&'static str]) -> Self {
        Self {
            rules: rules.to_vec(),
            prefix: String::new(),
            root: String::new(),
            their_root: String::new(),
            ignored: ignored.iter().map(|pattern| (*pattern).into()).collect(),
            head_dim: 0,
            last: 0,
            block: "",
        }
    }

    /// The same for heads of so many values, which [`Name::pairs`] and [`Name::head_by_head`] need.
    #[must_use]
    pub fn with_head_dim(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// The same for so many blocks, which tells what `$` stands for.
    #[must_use]
    pub fn with_depth(self, depth: usize) -> Self {
        Self { last: depth.saturating_sub(1), ..self }
    }

    /// The same with what `~` stands for.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// The same for a part of a larger model: the table's names follow `root` in ours.
    #[must_use]
    pub fn under(self, root: &str) -> Self {
        Self { root: root.to_owned(), ..self }
    }

    /// The same for a part of a larger checkpoint: the table's names follow `root` in the family's.
    #[must_use]
    pub fn within(self, root: &str) -> Self {
        Self { their_root: root.to_owned(), ..self }
    }

    /// The same where the family has `block` between the number of each block and its parts, as in
    /// `layers.0.decoder_layer.norm.weight`.
    #[must_use]
    pub fn wrapped_in(self, block: &'static str) -> Self {
        Self { block, ..self }
    }

    /// The same where further tensors carry nothing we need, such as blocks that are not run.
    #[must_use]
    pub fn ignoring(mut self, patterns: impl IntoIterator<Item = String>) -> Self {
        self.ignored.extend(patterns.into_iter().map(Cow::from));
        self
    }

    /// Two tables as one.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        let absolute = |names: &Self| {
            let roots = [&names.root, &names.prefix, &names.their_root];
            assert!(roots.iter().all(|root| root.is_empty()), "join tables first");
        };
        absolute(&self);
        absolute(other);
        self.rules.extend(&other.rules);
        self.ignored.extend(other.ignored.iter().cloned());
        self
    }

    /// Where a parameter of ours is, or `None` if the family has no such thing.
    pub(crate) fn place(&self, name: &str) -> Option<Place> {
        if self.rules.is_empty() {
            return Some(Place { theirs: vec![name.to_owned()], layout: Layout::Same, leading: 0 });
        }
        let name = name.strip_prefix(&self.root)?;
        self.rules.iter().find_map(|rule| {
            let stars = if rule.ours.contains('$') {
                captures(&rule.ours.replace('$', &self.last.to_string()), name)?
            } else {
                captures(rule.ours, name)?
            };
            let mut theirs = expand(rule.theirs, &self.prefix, &stars);
            for name in theirs.iter_mut().filter(|name| !name.is_empty()) {
                if let (false, true, Some(number)) =
                    (self.block.is_empty(), rule.ours.starts_with("blocks.*."), stars.first())
                {
                    *name = name.replacen(
                        &format!(".{number}."),
                        &format!(".{number}.{}.", self.block),
                        1,
                    );
                }
                name.insert_str(0, &self.their_root);
            }
            let layout = match rule.layout {
                Layout::Pairs(_) => Layout::Pairs(self.head_dim),
                Layout::HeadByHead(_) => Layout::HeadByHead(self.head_dim),
                layout => layout,
            };
            Some(Place { theirs, layout, leading: rule.leading })
        })
    }

    /// The tensors of a checkpoint that make up a parameter of ours, through the first map that knows
    /// it; none if no map does.
    pub fn stored(names: &[Self], parameter: &str) -> Vec<String> {
        let place = names.iter().find_map(|n| n.place(parameter));
        place.map_or_else(Vec::new, |p| p.stored().cloned().collect())
    }

    /// The same, if the rows of each are outputs of a linear layer, so that each may have a scale.
    pub fn stored_rows(names: &[Self], parameter: &str) -> Vec<String> {
        let place = names.iter().find_map(|n| n.place(parameter));
        let place = place.filter(|p| matches!(p.layout, Layout::Same | Layout::Pairs(_)));
        place.map_or_else(Vec::new, |p| p.stored().cloned().collect())
    }

    pub(crate) fn is_ignored(&self, name: &str) -> bool {
        let bare = name.strip_prefix(&self.prefix).unwrap_or(name);
        let unwrapped = bare.replacen(&format!(".{}.", self.block), ".", 1);
        let bare = if self.block.is_empty() { bare } else { &unwrapped };
        self.ignored.iter().any(|p| captures(p, bare).is_some() || captures(p, name).is_some())
    }
}

/// Rows of `row` items, heads of `head_dim` rows: the first rows of a head's pairs, then the second
/// ones. `None` if there are no whole heads of pairs.
pub(crate) fn halves_of_pairs<T: Copy>(items: &[T], row: usize, head_dim: usize) -> Option<Vec<T>> {
    let head = row.checked_mul(head_dim).filter(|n| *n > 0 && head_dim.is_multiple_of(2))?;
    if !items.len().is_multiple_of(head) {
        return None;
    }
    let mut all = Vec::with_capacity(items.len());
    for head in items.chunks_exact(head) {
        for half in 0..2 {
            for pair in head.chunks_exact(2 * row) {
                all.extend(&pair[half * row..][..row]);
            }
        }
    }
    Some(all)
}

/// The inverse of [`halves_of_pairs`].
fn pairs_of_halves(values: &[f32], row: usize, head_dim: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(values.len());
    for head in values.chunks_exact((row * head_dim).max(1)) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks_exact(row).zip(second.chunks_exact(row)) {
            all.extend(a.iter().chain(b));
        }
    }
    all
}

/// Blocks of `block` values that stand in `outer` groups of `inner`, as `inner` groups of `outer`.
fn regrouped(values: &[f32], outer: usize, inner: usize, block: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(values.len());
    for i in 0..inner {
        for o in 0..outer {
            all.extend(&values[(o * inner + i) * block..][..block]);
        }
    }
    all
}

/// What each `*` of `pattern` stands for, if the pattern fits.
fn captures<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let (mut stars, mut parts) = (Vec::new(), name.split('.'));
    for want in pattern.split('.') {
        let part = parts.next()?;
        if want == "*" {
            stars.push(part);
        } else if want != part {
            return None;
        }
    }
    parts.next().is_none().then_some(stars)
}

fn expand(theirs: &str, prefix: &str, stars: &[&str]) -> Vec<String> {
    let mut name = match theirs.strip_prefix('~') {
        Some(rest) => format!("{prefix}{rest}"),
        None => theirs.to_owned(),
    };
    for star in stars {
        let Some(at) = name.find(['*', '+']) else { break };
        let counted_from_1 = star.parse::<usize>().ok().filter(|_| name[at..].starts_with('+'));
        let part = counted_from_1.map_or_else(|| (*star).to_owned(), |n| (n + 1).to_string());
        name.replace_range(at..=at, &part);
    }
    match (name.find('{'), name.find('}')) {
        (Some(open), Some(close)) => name[open + 1..close]
            .split(',')
            .map(|part| match part {
                "0" => String::new(),
                part => format!("{}{part}{}", &name[..open], &name[close + 1..]),
            })
            .collect(),
        _ => vec![name],
    }
}

impl Place {
    /// The tensors that a file has.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &String> {
        self.theirs.iter().filter(|name| !name.is_empty())
    }

    /// Our values from the family's tensors; `None` if a shape does not fit.
    pub(crate) fn to_ours(
        &self,
        parts: Vec<(Vec<usize>, Vec<f32>)>,
        ours: &[usize],
    ) -> Option<Vec<f32>> {
        let share = share(ours, parts.len())?;
        let mut all = Vec::with_capacity(ours.iter().product());
        for (shape, values) in parts {
            if !self.fits(&shape, &share) {
                return None;
            }
            match self.layout {
                Layout::Same => all.extend(values),
                Layout::Pairs(head_dim) => {
                    let row = values.len() / shape.first().copied().unwrap_or(1).max(1);
                    all.extend(halves_of_pairs(&values, row, head_dim)?);
                }
                Layout::HeadByHead(head_dim) => {
                    let rows = shape.first().copied().unwrap_or(0);
                    let (heads, block) = (rows / (3 * head_dim), values.len() / rows * head_dim);
                    all.extend(regrouped(&values, heads, 3, block));
                }
                Layout::Part(part, _) => {
                    let len = share.iter().product::<usize>();
                    all.extend_from_slice(&values[part * len..][..len]);
                }
                Layout::Transposed(split) => {
                    let rows: usize = shape[..split].iter().product();
                    all.extend(transposed(&values, rows));
                }
                Layout::Hwio => {
                    // [height * width * in, out] to [out, height * width, in] to [out, in, ..]
                    let &[h, w, inputs, outputs] = &shape[..] else { return None };
                    let filters = transposed(&values, h * w * inputs);
                    for filter in filters.chunks_exact(h * w * inputs) {
                        all.extend(transposed(filter, h * w));
                    }
                    debug_assert_eq!(outputs, share[0]);
                }
            }
        }
        Some(all)
    }

    /// Whether a tensor of the family has the values of `share` of ours.
    pub(crate) fn fits(&self, theirs: &[usize], share: &[usize]) -> bool {
        let bare =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|n| *n != 1).collect() };
        let merged = |shape: &[usize]| {
            // Merged axes (heads of a bias, a filter as a row): only the product counts.
            shape.iter().product::<usize>() == share.iter().product::<usize>()
        };
        match self.layout {
            Layout::Same => {
                let rows_merge = share.len() == 2 && theirs.len() == 4 && theirs[0] == share[0];
                let axes_merge = share.len() == 1 && theirs.len() == 2;
                bare(theirs) == bare(share) || ((rows_merge || axes_merge) && merged(theirs))
            }
            Layout::Transposed(split) if split < theirs.len() => {
                let rows: usize = theirs[..split].iter().product();
                let cols: usize = theirs[split..].iter().product();
                share == [cols, rows]
            }
            Layout::Transposed(_) => false,
            Layout::Pairs(head_dim) => {
                let is_whole = |rows: &usize| rows.is_multiple_of(head_dim.max(1));
                head_dim.is_multiple_of(2) && theirs == share && share.first().is_some_and(is_whole)
            }
            Layout::HeadByHead(head_dim) => {
                let rows = theirs.first().copied().unwrap_or(0);
                theirs == share && head_dim > 0 && rows > 0 && rows.is_multiple_of(3 * head_dim)
            }
            Layout::Part(_, of) => match (theirs.split_first(), share.split_first()) {
                (Some((theirs, rest)), Some((ours, same))) => *theirs == of * ours && rest == same,
                _ => false,
            },
            Layout::Hwio => {
                matches!(theirs, &[h, w, i, o] if share == [o, i, h, w] || share == [o, i * h * w])
            }
        }
    }

    /// The family's tensors from our values, each with its shape. Only for the layouts that we
    /// write: the same, or a transposed matrix.
    pub(crate) fn to_theirs(&self, ours: &[usize], values: &[f32]) -> Vec<(Vec<usize>, Vec<f32>)> {
        let n = self.theirs.len();
        let share = share(ours, n).unwrap_or_else(|| ours.to_vec());
        values
            .chunks_exact((values.len() / n).max(1))
            .map(|part| match self.layout {
                Layout::Pairs(head_dim) => {
                    let row = part.len() / share.first().copied().unwrap_or(1).max(1);
                    (share.clone(), pairs_of_halves(part, row, head_dim))
                }
                Layout::HeadByHead(head_dim) => {
                    let rows = share.first().copied().unwrap_or(1).max(1);
                    let (heads, block) = (rows / (3 * head_dim), part.len() / rows * head_dim);
                    (share.clone(), regrouped(part, 3, heads, block))
                }
                Layout::Transposed(_) => {
                    let shape = share.iter().rev().copied().collect();
                    (shape, transposed(part, share[0]))
                }
                _ => {
                    let mut shape = vec![1; self.leading];
                    shape.extend(&share);
                    (shape, part.to_vec())
                }
            })
            .collect()
    }
}

/// The shape of one of `n` equal parts along the first axis.
pub(crate) fn share(ours: &[usize], n: usize) -> Option<Vec<usize>> {
    let mut share = ours.to_vec();
    if n > 1 {
        let first = share.first_mut()?;
        if !first.is_multiple_of(n) {
            return None;
        }
        *first /= n;
    }
    Some(share)
}

fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows.max(1);
    let mut out = Vec::with_capacity(values.len());
    for c in 0..cols {
        out.extend((0..rows).map(|r| values[r * cols + c]));
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    const TABLE: &[Name] = &[
        copy("class", "~cls").leading(2),
        copy("patch.*", "~proj.*"),
        concat("blocks.*.attn.bias", "~layer.*.{q,0,v}"),
        concat("blocks.*.attn.qkv.*", "~layer.*.{q,k,v}.*"),
        copy("stages.*.*.*", "~block+/unit+/*"),
        transpose("head.weight", "head/kernel", 1),
    ];

    #[test]
    fn names_are_found_in_both_directions() {
        let names = Names::family(TABLE, &["pos.*"]).with_prefix("vit.").under("vision.");
        let place = names.place("vision.blocks.3.attn.qkv.bias").unwrap();
        assert_eq!(
            place.theirs,
            ["vit.layer.3.q.bias", "vit.layer.3.k.bias", "vit.layer.3.v.bias"]
        );
        assert_eq!(names.place("vision.patch.weight").unwrap().theirs, ["vit.proj.weight"]);
        assert_eq!(names.place("vision.head.weight").unwrap().theirs, ["head/kernel"]);
        let within = names.clone().within("visual.");
        let place = within.place("vision.blocks.3.attn.bias").unwrap();
        assert_eq!(place.theirs, ["visual.vit.layer.3.q", "", "visual.vit.layer.3.v"]);
        let place = names.place("vision.stages.0.9.conv").unwrap();
        assert_eq!(place.theirs, ["vit.block1/unit10/conv"]);
        let place = names.place("vision.blocks.3.attn.bias").unwrap();
        assert_eq!(place.theirs, ["vit.layer.3.q", "", "vit.layer.3.v"]);
        assert!(place.stored().eq(["vit.layer.3.q", "vit.layer.3.v"]));
        assert!(names.place("vision.other").is_none() && names.place("class").is_none());
        assert!(
            names.is_ignored("pos.ids")
                && names.is_ignored("vit.pos.ids")
                && !names.is_ignored("pos")
        );
    }

    #[test]
    fn values_come_back_as_they_went() {
        let names = Names::family(TABLE, &[]);
        for (name, ours) in [
            ("class", vec![4]),
            ("blocks.0.attn.qkv.weight", vec![6, 2]),
            ("head.weight", vec![2, 3]),
        ] {
            let place = names.place(name).unwrap();
            let values: Vec<f32> = (0..ours.iter().product()).map(|i| i as f32).collect();
            let theirs = place.to_theirs(&ours, &values);
            assert_eq!(theirs.len(), place.theirs.len());
            assert_eq!(place.to_ours(theirs, &ours).unwrap(), values);
        }
        let place = names.place("head.weight").unwrap();
        assert_eq!(
            place.to_theirs(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[0].1,
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
        );
        assert!(place.to_ours(vec![(vec![2, 3], vec![0.0; 6])], &[2, 3]).is_none());
    }

    #[test]
    fn filters_and_merged_heads_are_brought_into_our_order() {
        let place = |layout| Place { theirs: vec![String::new()], layout, leading: 0 };
        // [1, 2, in 2, out 3] to [3, 2, 1, 2]
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let ours =
            place(Layout::Hwio).to_ours(vec![(vec![1, 2, 2, 3], values)], &[3, 2, 1, 2]).unwrap();
        assert_eq!(ours[..4], [0.0, 6.0, 3.0, 9.0]);
        // [in 2, heads 2, head_dim 1] to [2, 2]
        let heads = vec![(vec![2, 2, 1], vec![0.0, 1.0, 2.0, 3.0])];
        assert_eq!(
            place(Layout::Transposed(1)).to_ours(heads, &[2, 2]).unwrap(),
            [0.0, 2.0, 1.0, 3.0]
        );
        // Two heads of two pairs of rows, and back.
        let pairs: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let halves = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        let heads = place(Layout::Pairs(4));
        assert_eq!(heads.to_ours(vec![(vec![8, 1], pairs.clone())], &[8, 1]).unwrap(), halves);
        assert_eq!(heads.to_theirs(&[8, 1], &halves)[0].1, pairs);
        assert!(!place(Layout::Pairs(3)).fits(&[6], &[6]));
        // The second of two parts, and which block is the last.
        let second = place(Layout::Part(1, 2));
        let both = vec![(vec![4, 1], vec![0.0, 1.0, 2.0, 3.0])];
        assert_eq!(second.to_ours(both, &[2, 1]).unwrap(), [2.0, 3.0]);
        assert!(!second.fits(&[5, 1], &[2, 1]) && !second.fits(&[4, 2], &[2, 1]));
        let rules = &[copy("b.$.x", "end"), copy("b.*.x", "layers.+.x")];
        let names = Names::family(rules, &[]).with_depth(4);
        assert_eq!(names.place("b.3.x").unwrap().theirs, ["end"]);
        assert_eq!(names.place("b.2.x").unwrap().theirs, ["layers.3.x"]);
        // Two heads of one row each: q k v q k v to q q k k v v, and back.
        let heads = place(Layout::HeadByHead(1));
        let theirs: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let ours = [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0];
        assert_eq!(heads.to_ours(vec![(vec![6, 2], theirs.clone())], &[6, 2]).unwrap(), ours);
        assert_eq!(heads.to_theirs(&[6, 2], &ours)[0].1, theirs);
        assert!(!heads.fits(&[5], &[5]) && !place(Layout::HeadByHead(0)).fits(&[6], &[6]));
        assert!(
            place(Layout::Same).fits(&[2, 3], &[6]) && !place(Layout::Same).fits(&[3, 2], &[2, 3])
        );
    }
}
