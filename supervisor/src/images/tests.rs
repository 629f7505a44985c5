use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::scratch::{Scratch, root_or_skip};

fn id(name: &str) -> ImageId {
    name.parse().unwrap()
}

/// The least that is taken for a root filesystem.
fn write_rootfs(scratch: &Scratch, at: &str) {
    scratch.write(&format!("{at}/bin/sh"), "#!");
    std::fs::set_permissions(scratch.join(at).join("bin/sh"), Permissions::from_mode(0o755)).unwrap();
}

/// The layers of an image, by what follows the scratch directory in their paths.
fn layer_names(scratch: &Scratch, image: &str) -> Vec<String> {
    let image = resolve(&scratch.join("img"), &id(image)).unwrap();
    let name = |layer: &Layer| layer.path.strip_prefix(scratch.join("img")).unwrap().display().to_string();
    image.layers.iter().map(name).collect()
}

/// Everything below a folder, hidden names too.
fn everything_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_plain_folder_is_an_image_of_one_layer_whatever_config_lies_in_it() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "img/busybox");
    scratch.write("img/busybox/config", "not lxc");
    assert_eq!(layer_names(&scratch, "busybox"), ["busybox"]);
    assert!(matches!(resolve(&scratch.join("img"), &id("none")), Err(ImageError::Unknown(_))));
}

#[test]
fn layers_are_flattened_top_first_and_a_shared_base_stays_at_the_bottom_once() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "img/base");
    scratch.write("img/tool/layers", "./files\nbase\n");
    scratch.write("img/tool/files/x", "");
    scratch.write("img/lib/layers", "# a library\n./files\nbase\n");
    scratch.write("img/lib/files/y", "");
    scratch.write("img/both/layers", "tool\nlib\n");
    scratch.write("img/both/config", "lxc.environment = A=1\n");
    assert_eq!(layer_names(&scratch, "tool"), ["tool/files", "base"]);
    assert_eq!(layer_names(&scratch, "both"), ["tool/files", "lib/files", "base"]);
    let config = resolve(&scratch.join("img"), &id("both")).unwrap().config;
    assert_eq!(config.environment, [("A".to_owned(), "1".to_owned())]);
}

#[test]
fn cycles_missing_layers_and_endless_stacks_are_refused() {
    let scratch = Scratch::new("images");
    scratch.write("img/a/layers", "b\n");
    scratch.write("img/b/layers", "a\n");
    scratch.write("img/self/layers", "self\n");
    scratch.write("img/missing/layers", "./gone\n");
    scratch.write("img/unknown/layers", "nobody\n");
    scratch.write("img/broken/layers", "../../etc\n");
    scratch.write("img/greedy/layers", "./s\n");
    scratch.write("img/greedy/s/x", "");
    scratch.write("img/greedy/config", "lxc.hook.start = /bin/evil\n");
    scratch.write("img/many/layers", "./s\n".repeat(layers::MAX_LAYERS + 1));
    scratch.write("img/many/s/x", "");
    let refused = |image: &str| resolve(&scratch.join("img"), &id(image)).unwrap_err().to_string();
    assert!(refused("a").contains("built on itself: a -> b -> a"), "{}", refused("a"));
    assert!(refused("self").contains("self -> self"));
    assert!(refused("missing").contains("missing/gone"));
    assert!(refused("unknown").contains("cannot find image nobody"));
    assert!(refused("broken").contains("line 1"));
    assert!(refused("greedy").contains("lxc.hook.start"));
    assert!(refused("many").contains("more than 32 layers"));
}

#[test]
fn no_symlink_leads_out_of_the_images() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "elsewhere");
    std::fs::create_dir(scratch.join("img")).unwrap();
    symlink(scratch.join("elsewhere"), scratch.join("img/linked")).unwrap();
    scratch.write("img/inner/layers", "./up\n");
    symlink("../../elsewhere", scratch.join("img/inner/up")).unwrap();
    scratch.write("text", "./s\n");
    std::fs::create_dir(scratch.join("img/file")).unwrap();
    symlink("../../text", scratch.join("img/file/layers")).unwrap();
    for image in ["linked", "inner", "file"] {
        assert!(matches!(resolve(&scratch.join("img"), &id(image)), Err(ImageError::Open { .. })), "{image}");
    }
    assert!(!exists(&scratch.join("img"), &id("linked")));
}

#[test]
fn the_list_holds_images_only() {
    let scratch = Scratch::new("images");
    assert_eq!(list(&scratch.join("img")).unwrap(), []);
    write_rootfs(&scratch, "img/debian");
    write_rootfs(&scratch, "img/busybox");
    write_rootfs(&scratch, "img/.adding-x-1");
    scratch.write("img/file", "");
    assert_eq!(list(&scratch.join("img")).unwrap(), [id("busybox"), id("debian")]);
}

#[test]
fn a_folder_is_added_as_it_is_and_only_once() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "rootfs");
    symlink("/absolute", scratch.join("rootfs/link")).unwrap();
    std::fs::hard_link(scratch.join("rootfs/bin/sh"), scratch.join("rootfs/bin/ash")).unwrap();
    std::fs::set_permissions(scratch.join("rootfs"), Permissions::from_mode(0o750)).unwrap();
    add(&scratch.join("img"), &id("a"), &scratch.join("rootfs")).unwrap();

    let added = scratch.join("img/a");
    assert_eq!(std::fs::read_link(added.join("link")).unwrap(), Path::new("/absolute"));
    assert_eq!(std::fs::metadata(added.join("bin/sh")).unwrap().nlink(), 2);
    assert_eq!(std::fs::metadata(&added).unwrap().permissions().mode() & 0o777, 0o750);
    let again = add(&scratch.join("img"), &id("a"), &scratch.join("rootfs")).unwrap_err();
    assert!(again.to_string().contains("hint: berth-supervisor image rm a"));
    assert_eq!(everything_in(&scratch.join("img")), ["a"]);
}

#[test]
fn what_has_no_shell_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new("images");
    scratch.write("rootfs/etc/passwd", "");
    scratch.write("rootfs/wrapped/bin/sh", "");
    symlink("/bin", scratch.join("rootfs/bin")).unwrap();
    for source in [scratch.join("rootfs"), scratch.join("none"), scratch.join("rootfs/etc/passwd")] {
        add(&scratch.join("img"), &id("a"), &source).unwrap_err();
        assert_eq!(everything_in(&scratch.join("img")), [""; 0], "{source:?}");
    }
}

#[test]
fn a_shell_behind_absolute_symlinks_is_found_inside_the_image() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "rootfs/usr");
    symlink("/usr/bin", scratch.join("rootfs/bin")).unwrap();
    add(&scratch.join("img"), &id("a"), &scratch.join("rootfs")).unwrap();
}

#[test]
fn a_layered_folder_is_added_when_its_stack_holds() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "img/base");
    scratch.write("tool/layers", "./files\nbase\n");
    scratch.write("tool/files/bin/tool", "");
    add(&scratch.join("img"), &id("tool"), &scratch.join("tool")).unwrap();
    assert_eq!(layer_names(&scratch, "tool"), ["tool/files", "base"]);
    scratch.write("tool/layers", "./files\nnobody\n");
    assert!(add(&scratch.join("img"), &id("tool2"), &scratch.join("tool")).is_err());
    assert_eq!(everything_in(&scratch.join("img")), ["base", "tool"]);
}

#[test]
fn an_image_others_are_built_on_stays_until_they_are_gone() {
    let scratch = Scratch::new("images");
    let img = scratch.join("img");
    write_rootfs(&scratch, "img/base");
    scratch.write("img/tool/layers", "./files\nbase\n");
    scratch.write("img/tool/files/x", "");
    assert!(
        matches!(remove(&img, &img.join("none"), &id("base")), Err(ImageError::InUse { by, .. }) if by == id("tool"))
    );
    remove(&img, &img.join("none"), &id("tool")).unwrap();
    remove(&img, &img.join("none"), &id("base")).unwrap();
    assert!(matches!(remove(&img, &img.join("none"), &id("base")), Err(ImageError::Unknown(_))));
    assert_eq!(everything_in(&img), [""; 0]);
}

#[test]
fn what_a_killed_addition_left_is_swept_and_a_living_ones_work_is_not() {
    let scratch = Scratch::new("images");
    write_rootfs(&scratch, "rootfs");
    // No pid reaches 2^22 (PID_MAX_LIMIT, proc(5)).
    scratch.write("img/.adding-x-4194305/file", "");
    scratch.write("img/.removing-y-4194305/file", "");
    scratch.write("img/.adding-z-1/file", "");
    add(&scratch.join("img"), &id("a"), &scratch.join("rootfs")).unwrap();
    assert_eq!(everything_in(&scratch.join("img")), [".adding-z-1", "a"]);
}

/// A tar archive with a shell in it and what `fill` adds.
fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, tar::EntryType::Regular, "bin/sh", "", 0o755);
    fill(&mut builder);
    builder.into_inner().unwrap()
}

/// Writes the names into the header as they are: `append_data` would refuse the hostile ones.
fn append(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str, mode: u32) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(mode);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1);
    let ustar = header.as_ustar_mut().unwrap();
    ustar.name[..name.len()].copy_from_slice(name.as_bytes());
    ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    builder.append(&header, io::empty()).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_tar_plain_or_gzip_is_unpacked_with_modes_and_owners_and_without_devices() {
    if !root_or_skip("unpacking a tar needs chroot") {
        return;
    }
    let scratch = Scratch::new("images");
    let tar = archive(|builder| {
        append(builder, tar::EntryType::Directory, "usr/", "", 0o711);
        append(builder, tar::EntryType::Regular, "usr/tool", "", 0o4755);
        append(builder, tar::EntryType::Link, "usr/hard", "usr/tool", 0o755);
        append(builder, tar::EntryType::Char, "usr/null", "", 0o666);
        append(builder, tar::EntryType::Fifo, "usr/fifo", "", 0o666);
    });
    scratch.write("plain", &tar);
    scratch.write("packed", gzip(&tar));
    for (image, source) in [("a", "plain"), ("b", "packed")] {
        add(&scratch.join("img"), &id(image), &scratch.join(source)).unwrap();
        let tool = std::fs::metadata(scratch.join("img").join(image).join("usr/tool")).unwrap();
        assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.nlink()), (0o4755, 12, 34, 2));
        assert_eq!(everything_in(&scratch.join("img").join(image).join("usr")), ["hard", "tool"]);
    }
    // The thread that unpacked took its root directory with it.
    assert!(scratch.path().exists());
}

#[test]
fn absolute_symlinks_in_a_tar_stay_inside_the_image() {
    if !root_or_skip("unpacking a tar needs chroot") {
        return;
    }
    let scratch = Scratch::new("images");
    std::fs::create_dir(scratch.join("victim")).unwrap();
    let victim = scratch.join("victim").display().to_string();
    let inside = &victim[1..];
    let tar = archive(|builder| {
        append(builder, tar::EntryType::Directory, inside, "", 0o755);
        append(builder, tar::EntryType::Symlink, "door", &victim, 0o777);
        append(builder, tar::EntryType::Regular, "door/planted", "", 0o644);
    });
    scratch.write("tar", tar);
    add(&scratch.join("img"), &id("a"), &scratch.join("tar")).unwrap();
    assert_eq!(everything_in(&scratch.join("victim")), [""; 0]);
    assert!(scratch.join("img/a").join(inside).join("planted").exists());
}

#[test]
fn archives_that_are_no_root_filesystem_are_refused_in_a_sentence_and_leave_nothing() {
    if !root_or_skip("unpacking a tar needs chroot") {
        return;
    }
    let scratch = Scratch::new("images");
    let whole = archive(|_| {});
    let dotdot = archive(|b| append(b, tar::EntryType::Regular, "../../escaped", "", 0o644));
    let whiteout = archive(|b| append(b, tar::EntryType::Regular, "etc/.wh.passwd", "", 0o644));
    let cases: [(&str, Vec<u8>); 7] = [
        ("leads out", dotdot),
        ("whiteout", whiteout),
        ("xz -d", b"\xfd7zXZ\0...".to_vec()),
        ("zstd", b"\x28\xb5\x2f\xfd...".to_vec()),
        ("tar archive", b"just some text, longer than one block of tar ".repeat(40)),
        ("bin/sh", Vec::new()),
        ("tar archive", gzip(&whole)[..40].to_vec()),
    ];
    for (said, bytes) in cases {
        scratch.write("source", bytes);
        let refused = add(&scratch.join("img"), &id("a"), &scratch.join("source")).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused:?} does not say {said:?}");
        assert_eq!(everything_in(&scratch.join("img")), [""; 0], "{said}");
    }
}
