//! The `layers` file: what it may say, and the flat stack it stands for.

use std::path::{Component, PathBuf};

use wire::ImageId;

use super::{Folder, ImageError, ImgDir, Layer};

/// The most layers one image may stand for.
pub(super) const MAX_LAYERS: usize = 32;
/// The name of the file.
pub(super) const FILE: &str = "layers";

/// One line of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LayerName {
    /// Another image, with all its layers.
    Image(ImageId),
    /// A folder inside this image.
    Folder(PathBuf),
}

/// Reads a `layers` file: one layer a line, top first; blank lines and lines beginning with `#` say nothing.
pub(super) fn parse(text: &str) -> Result<Vec<LayerName>, String> {
    let lines = text.lines().map(str::trim).enumerate();
    let said = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let layers = said
        .map(|(index, line)| parse_line(line).map_err(|why| format!("line {}: {why}", index + 1)))
        .collect::<Result<Vec<_>, _>>()?;
    if layers.is_empty() { Err("it names no layer".to_owned()) } else { Ok(layers) }
}

fn parse_line(line: &str) -> Result<LayerName, String> {
    let Some(sub) = line.strip_prefix("./") else {
        return line
            .parse()
            .map(LayerName::Image)
            .map_err(|_| format!("{line:?} is neither an image's name nor a folder inside this one, as ./sub"));
    };
    let sub = PathBuf::from(sub);
    let plain = sub.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !sub.as_os_str().is_empty() {
        Ok(LayerName::Folder(sub))
    } else {
        Err(format!("{line:?} is not a folder inside this image"))
    }
}

/// Opens the whole stack that `top` stands for.
pub(super) fn flatten(images: &ImgDir, top: Folder) -> Result<Vec<Layer>, ImageError> {
    let mut stack = Stack { images, chain: Vec::new(), layers: Vec::new() };
    stack.push(top)?;
    stack.drop_upper_repeats();
    Ok(stack.layers)
}

/// The layers found so far, top first, and the images whose `layers` file is being walked.
struct Stack<'a> {
    images: &'a ImgDir,
    chain: Vec<String>,
    layers: Vec<Layer>,
}

impl Stack<'_> {
    fn push(&mut self, folder: Folder) -> Result<(), ImageError> {
        let Some(text) = folder.read(FILE)? else {
            return self.push_layer(Layer { path: folder.path, dir: folder.dir });
        };
        let file = folder.path.join(FILE);
        let wrong = |why: String| ImageError::Layers { path: file.clone(), why };
        if self.chain.contains(&folder.name) {
            return Err(wrong(format!("it is built on itself: {} -> {}", self.chain.join(" -> "), folder.name)));
        }
        if self.chain.len() == MAX_LAYERS {
            return Err(wrong(format!("more than {MAX_LAYERS} images are built on each other")));
        }
        let names = parse(&text).map_err(wrong)?;
        self.chain.push(folder.name.clone());
        for name in names {
            match name {
                LayerName::Image(id) => self.push(self.images.open_image(&id)?)?,
                LayerName::Folder(sub) => self.push_layer(folder.open_sub(&sub)?)?,
            }
        }
        self.chain.pop();
        Ok(())
    }

    /// Counted before repeats are dropped, so that nested files cannot multiply without end.
    fn push_layer(&mut self, layer: Layer) -> Result<(), ImageError> {
        if self.layers.len() == MAX_LAYERS {
            let path = self.images.path.join(self.chain.first().map_or("", String::as_str)).join(FILE);
            return Err(ImageError::Layers { path, why: format!("it stands for more than {MAX_LAYERS} layers") });
        }
        self.layers.push(layer);
        Ok(())
    }

    /// Two images on the same base bring it twice, and overlayfs refuses a folder that is there twice (ELOOP).
    /// The lowest place is the one both wanted it at.
    fn drop_upper_repeats(&mut self) {
        let paths: Vec<PathBuf> = self.layers.iter().map(|layer| layer.path.clone()).collect();
        let mut index = 0;
        self.layers.retain(|layer| {
            index += 1;
            !paths[index..].contains(&layer.path)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layers_file_names_images_and_folders_and_may_have_comments() {
        let text = "# python on debian\n\n./rootfs\n  debian-12 \n./a/b\n";
        let image = |id: &str| LayerName::Image(id.parse().unwrap());
        let folder = |sub: &str| LayerName::Folder(sub.into());
        assert_eq!(parse(text).unwrap(), [folder("rootfs"), image("debian-12"), folder("a/b")]);
    }

    #[test]
    fn a_line_that_could_lead_out_is_refused_by_its_number() {
        for bad in ["..", "../x", "./..", "./a/../../b", "/etc", "./", ".//etc", "a/b", ".hidden", "a\0b", "./a/./../b"]
        {
            let why = parse(&format!("good\n{bad}\n")).unwrap_err();
            assert!(why.starts_with("line 2: "), "{bad:?}: {why}");
        }
        assert!(parse("# nothing\n").is_err());
    }
}
