//! Image facts over the fake engine.

use super::*;
use crate::engine::scripted::{CallKind, Fault, Program, ScriptedEngine, ScriptedFile, ScriptedImage};

const NAME: &str = "team/gcc:12";

fn engine(change: impl FnOnce(&mut ScriptedImage)) -> ScriptedEngine {
    let engine = ScriptedEngine::new(|_| Program::Runs);
    let mut image = ScriptedImage::plain(NAME);
    change(&mut image);
    engine.hold_image(image);
    engine
}

fn images(data: &tempfile::TempDir) -> Images {
    Images::open(data.path(), Instance::new("w")).expect("a folder")
}

async fn facts(images: &Images, engine: &ScriptedEngine) -> Result<Arc<ImageFacts>, ImageError> {
    let image = images.find(engine, NAME).await?;
    images.facts(engine, &image).await
}

fn created(engine: &ScriptedEngine) -> usize {
    engine.calls().iter().filter(|call| call.kind == CallKind::Create).count()
}

#[tokio::test]
async fn facts_are_found_out_once_and_survive_a_restart() {
    let data = tempfile::tempdir().expect("a folder");
    let engine = engine(|image| image.info.user = "1234".into());
    let first = images(&data);
    let found = facts(&first, &engine).await.expect("facts");
    assert_eq!((found.owner.uid, found.has_shell, found.arch.as_str()), (1234, true, "amd64"));
    assert!(
        std::fs::read_to_string(&found.passwd).expect("passwd").contains("build:x:1234:1234::/home/build")
    );
    assert_eq!(facts(&first, &engine).await.expect("facts"), found);
    assert_eq!(facts(&images(&data), &engine).await.expect("facts"), found);
    assert_eq!(created(&engine), 1);
    assert_eq!(engine.container_names(), Vec::<String>::new(), "and nothing is left of it");
}

#[tokio::test]
async fn what_is_kept_by_half_is_found_out_again() {
    let data = tempfile::tempdir().expect("a folder");
    let engine = engine(|_| {});
    let found = facts(&images(&data), &engine).await.expect("facts");
    std::fs::remove_file(&found.group).expect("remove");
    assert_eq!(facts(&images(&data), &engine).await.expect("facts"), found);
    std::fs::write(found.passwd.with_file_name("facts.json"), "{\"format\":0}").expect("write");
    assert_eq!(facts(&images(&data), &engine).await.expect("facts"), found);
    assert_eq!(created(&engine), 3);
}

#[tokio::test]
async fn an_image_without_a_shell_says_so() {
    let data = tempfile::tempdir().expect("a folder");
    for file in [None, Some(ScriptedFile::Bytes(Vec::new())), Some(ScriptedFile::Link("/bin/sh".into()))] {
        let engine = engine(|image| {
            image.files.remove("/bin/sh");
            image.files.extend(file.clone().map(|file| ("/bin/sh".to_owned(), file)));
            let digest = format!("sha256:{:064x}", file.is_some() as u64);
            image.info.config_digest = Some(digest);
        });
        let images =
            Images::open(&data.path().join(format!("{file:?}").replace('/', "_")), Instance::new("w"));
        assert!(!facts(&images.expect("a folder"), &engine).await.expect("facts").has_shell, "{file:?}");
    }
}

#[tokio::test]
async fn a_missing_image_is_pulled_and_an_unknown_one_named() {
    let data = tempfile::tempdir().expect("a folder");
    let engine = ScriptedEngine::new(|_| Program::Runs);
    let images = images(&data);
    let unknown = facts(&images, &engine).await;
    let Err(ImageError::Engine { image, source: EngineError::ImageUnknown { .. } }) = &unknown else {
        panic!("{unknown:?}");
    };
    assert_eq!(image, NAME);
    engine.offer_image(ScriptedImage::plain(NAME));
    facts(&images, &engine).await.expect("pulled");
}

#[tokio::test]
async fn a_failure_leaves_no_container_and_is_tried_again() {
    let data = tempfile::tempdir().expect("a folder");
    let engine = engine(|_| {});
    let images = images(&data);
    engine.script(CallKind::ReadFile, Fault::Fails("disk".into()));
    facts(&images, &engine).await.expect_err("the engine failed");
    assert_eq!(engine.container_names(), Vec::<String>::new());
    facts(&images, &engine).await.expect("the second time");
}

#[tokio::test]
async fn a_container_left_of_a_crash_is_in_nobodys_way() {
    let data = tempfile::tempdir().expect("a folder");
    let engine = engine(|_| {});
    let images = images(&data);
    let image = images.find(&engine, NAME).await.expect("image");
    engine.create(&images.reading_spec(&image, &key(&image))).await.expect("as if by an earlier process");
    facts(&images, &engine).await.expect("facts");
    assert_eq!(engine.container_names(), Vec::<String>::new());
}

#[tokio::test]
async fn room_is_made_for_new_ones() {
    let data = tempfile::tempdir().expect("a folder");
    let images = images(&data);
    for number in 0..MAX_KEPT + 5 {
        std::fs::create_dir(images.folder.join(number.to_string())).expect("folder");
    }
    facts(&images, &engine(|_| {})).await.expect("facts");
    assert_eq!(std::fs::read_dir(&images.folder).expect("list").count(), MAX_KEPT);
}

#[tokio::test]
async fn what_is_used_is_kept_and_what_is_forgotten_is_found_out_again() {
    let data = tempfile::tempdir().expect("a folder");
    let images = images(&data);
    let engine = engine(|_| {});
    let old = std::time::SystemTime::UNIX_EPOCH;
    let age = |key: &str| {
        let folder = std::fs::File::open(images.folder.join(key)).expect("folder");
        folder.set_modified(old).expect("an old folder");
    };
    let found = facts(&images, &engine).await.expect("facts");
    let key = found.passwd.parent().expect("a folder").file_name().expect("a name").to_str().expect("text");
    let add = |from: usize| {
        for number in from..from + MAX_KEPT {
            std::fs::create_dir(images.folder.join(format!("other{number}"))).expect("folder");
        }
    };
    age(key);
    facts(&images, &engine).await.expect("a use of it");
    add(0);
    for number in 0..MAX_KEPT {
        age(&format!("other{number}"));
    }
    images.forget_oldest();
    assert!(found.passwd.is_file(), "the one that was used last is kept");

    age(key);
    add(MAX_KEPT);
    let forgotten = images.forget_oldest();
    assert!(forgotten.iter().any(|name| name == key) && !found.passwd.exists());
    let again = facts(&images, &engine).await.expect("facts");
    assert!(again.passwd.is_file() && again.group.is_file(), "files that are mounted are there");
    assert_eq!(created(&engine), 2);
}
