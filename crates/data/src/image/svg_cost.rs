//! What drawing an SVG would cost, before it is drawn: a few hundred bytes can ask for hours.

use std::collections::HashMap;

use ::resvg::usvg::{
    Group, Node,
    filter::{Filter, Kind},
    roxmltree::{self, Document},
};

/// Elements after every `use` is replaced by what it names.
const MOST_ELEMENTS: u64 = 200_000;
/// Elements within elements, `use` included.
const MOST_LEVELS: usize = 200;
/// Steps a pixel that all filters together may take; a step is some 2 ns, so 512 x 512 pixels of this
/// take some two seconds.
const MOST_STEPS: f64 = 4096.0;

/// Says why a text is too costly to be parsed: each `use` is a copy, so a chain of them doubles.
///
/// A text that is no XML passes, for the parser has the better words for it.
pub(super) fn check_text(text: &str) -> Result<(), String> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let Ok(document) = Document::parse_with_options(text, options) else { return Ok(()) };
    let named =
        document.descendants().filter_map(|node| Some((node.attribute("id")?, node))).collect();
    let mut counter = Elements { named, counted: HashMap::new() };
    match counter.count(document.root(), 0) {
        Some(count) if count <= MOST_ELEMENTS => Ok(()),
        Some(_) => Err(format!("over {MOST_ELEMENTS} elements once every use is drawn")),
        None => Err(format!("elements nested over {MOST_LEVELS} deep")),
    }
}

struct Elements<'a> {
    named: HashMap<&'a str, roxmltree::Node<'a, 'a>>,
    counted: HashMap<roxmltree::NodeId, u64>,
}

impl<'a> Elements<'a> {
    /// Elements at and below a node, or `None` below too many levels (a circle of `use` has no end).
    fn count(&mut self, node: roxmltree::Node<'a, 'a>, level: usize) -> Option<u64> {
        if let Some(&count) = self.counted.get(&node.id()) {
            return Some(count);
        }
        if level > MOST_LEVELS {
            return None;
        }
        let mut count = 1_u64;
        for child in node.children().filter(roxmltree::Node::is_element) {
            count = count.saturating_add(self.count(child, level + 1)?);
        }
        if let Some(target) = self.target(node) {
            count = count.saturating_add(self.count(target, level + 1)?);
        }
        self.counted.insert(node.id(), count);
        Some(count)
    }

    fn target(&self, node: roxmltree::Node<'a, 'a>) -> Option<roxmltree::Node<'a, 'a>> {
        if node.tag_name().name() != "use" {
            return None;
        }
        let link = node.attributes().find(|attribute| attribute.name() == "href")?;
        self.named.get(link.value().trim().strip_prefix('#')?).copied()
    }
}

/// Says why a drawing is too costly for a canvas of `width` x `height` pixels, each `scale` units wide.
pub(super) fn check_tree(
    root: &Group,
    width: usize,
    height: usize,
    scale: f32,
) -> Result<(), String> {
    let sides = [width as f64, height as f64];
    let mut budget = Budget { elements: 0, steps: 0.0, sides, scale: f64::from(scale) };
    budget.group(root);
    if budget.elements > MOST_ELEMENTS {
        return Err(format!("over {MOST_ELEMENTS} elements once masks and patterns are drawn"));
    }
    if budget.steps > MOST_STEPS {
        return Err(format!(
            "filters of {:.0} steps a pixel, over the limit of {MOST_STEPS}",
            budget.steps
        ));
    }
    Ok(())
}

struct Budget {
    elements: u64,
    steps: f64,
    sides: [f64; 2],
    scale: f64,
}

impl Budget {
    fn group(&mut self, group: &Group) {
        for filter in group.filters() {
            self.steps += self.filter(filter);
        }
        for node in group.children() {
            self.elements += 1;
            if self.elements > MOST_ELEMENTS || self.steps > MOST_STEPS {
                return;
            }
            if let Node::Group(group) = node {
                self.group(group);
            }
            node.subroots(|root| self.group(root));
        }
    }

    /// Steps a pixel, as if the filter covered the canvas.
    fn filter(&self, filter: &Filter) -> f64 {
        let window = |[x, y]: [f32; 2]| {
            let side =
                |radius: f32, side: f64| (2.0 * f64::from(radius) * self.scale + 1.0).min(side);
            side(x, self.sides[0]) * side(y, self.sides[1])
        };
        let steps = |kind: &Kind| match kind {
            // Four channels, each a sum over octaves of a noise of four corners.
            Kind::Turbulence(kind) => 32.0 * f64::from(kind.num_octaves()),
            Kind::ConvolveMatrix(kind) => 4.0 * kind.matrix().data().len() as f64,
            Kind::Morphology(kind) => window([kind.radius_x().get(), kind.radius_y().get()]),
            Kind::DiffuseLighting(_) | Kind::SpecularLighting(_) => 32.0,
            _ => 8.0,
        };
        filter.primitives().iter().map(|primitive| steps(primitive.kind())).sum()
    }
}
