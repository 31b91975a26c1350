//! Import circles: within a floor no file may, by way of others, import itself.
//!
//! An import is a path that begins with `crate`, `self` or `super`, in a `use` item or in code. It
//! is resolved to the file that defines the name, through the `use` items that re-export it. A
//! module that declares a child, or shows a child's items, does not import it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Item, UseTree, Visibility};

/// A module, as its path below the crate's root.
type Module = Vec<String>;

#[derive(Default)]
struct File {
    /// Names that the module makes known under another module's path: re-exports and plain imports.
    aliases: BTreeMap<String, Module>,
    /// Paths that the file names, as they resolve from the crate's root, the last part a name.
    paths: BTreeSet<Module>,
}

struct Reader<'a> {
    module: &'a Module,
    file: File,
    /// Names of modules inside the file, which are part of it.
    depth: usize,
}

impl Reader<'_> {
    /// From the crate's root; `None` for a path of another crate or of a prelude.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let mut base = self.module.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &path[1..];
            }
            "self" if path.len() > 1 => rest = &path[1..],
            "super" => {
                // A module inside the file has the file as its parent.
                let mut depth = self.depth;
                while rest.first().is_some_and(|part| part == "super") {
                    if depth > 0 {
                        depth -= 1;
                    } else {
                        base.pop();
                    }
                    rest = &rest[1..];
                }
            }
            _ => return None,
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    fn read_use(&mut self, tree: &UseTree, path: &mut Vec<String>, is_item: bool) {
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.read_use(&part.tree, path, is_item);
                path.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.read_use(tree, path, is_item);
                }
            }
            UseTree::Name(name) => self.import(path, &name.ident.to_string(), None, is_item),
            UseTree::Rename(name) => {
                let alias = name.rename.to_string();
                self.import(path, &name.ident.to_string(), Some(alias), is_item);
            }
            UseTree::Glob(_) => self.import(path, "*", None, false),
        }
    }

    fn import(&mut self, path: &[String], name: &str, alias: Option<String>, is_item: bool) {
        let mut full = path.to_vec();
        if name != "self" {
            full.push(name.to_owned());
        }
        // `use child::Name` of a module's own child.
        let absolute = self.absolute(&full).or_else(|| {
            let mut relative = self.module.clone();
            relative.extend(full.iter().cloned());
            Some(relative)
        });
        let Some(target) = absolute else { return };
        if is_item && self.depth == 0 {
            // A module that shows its children's items does not depend on them.
            let name = alias.unwrap_or_else(|| full.last().expect("a name").clone());
            self.file.aliases.insert(name, target);
        } else {
            self.file.paths.insert(target);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
        };
        match item {
            Item::Mod(module) if module.attrs.iter().any(is_test) => {}
            Item::Mod(module) if module.content.is_some() => {
                self.depth += 1;
                visit::visit_item(self, item);
                self.depth -= 1;
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_item = !matches!(item.vis, Visibility::Inherited);
        self.read_use(&item.tree, &mut Vec::new(), is_item);
    }

    /// `pub(in crate::floor)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if parts.len() > 1
            && let Some(target) = self.absolute(&parts)
        {
            self.file.paths.insert(target);
        }
        visit::visit_path(self, path);
    }
}

/// The module of a file, from its path below `src`.
fn module_of(path: &Path) -> Module {
    let mut parts: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// The files of one crate and the files that each imports.
pub(crate) struct Imports {
    files: BTreeMap<Module, File>,
}

impl Imports {
    /// `sources`: paths below `src`, and texts. Files of tests are left out.
    pub(crate) fn of(sources: &[(PathBuf, &str)]) -> Self {
        let mut files = BTreeMap::new();
        for (path, text) in sources {
            let module = module_of(path);
            let syntax = syn::parse_file(text).expect("a source file is Rust");
            let mut reader = Reader { module: &module, file: File::default(), depth: 0 };
            reader.visit_file(&syntax);
            let file = reader.file;
            files.insert(module, file);
        }
        Self { files }
    }

    /// The file that defines what `path` names.
    fn file_of(&self, path: &[String]) -> Option<&Module> {
        let mut path = path.to_vec();
        // A name may be re-exported more than once; a circle of names does not compile.
        'follow: for _ in 0..16 {
            for end in (0..=path.len()).rev() {
                let Some((module, file)) = self.files.get_key_value(&path[..end]) else { continue };
                let alias = path.get(end).and_then(|name| file.aliases.get(name));
                let Some(target) = alias else { return Some(module) };
                let mut next = target.clone();
                next.extend_from_slice(&path[end + 1..]);
                path = next;
                continue 'follow;
            }
            return None;
        }
        None
    }

    /// The files that `module` imports, among those below `floor`.
    fn imports_of<'a>(&'a self, module: &Module, floor: &[String]) -> BTreeSet<&'a Module> {
        let of_floor = |target: &&Module| target.starts_with(floor) && *target != module;
        self.files[module]
            .paths
            .iter()
            .filter_map(|path| self.file_of(path))
            .filter(of_floor)
            .collect()
    }

    /// The circles below `floor`, each as the modules that are tied together.
    pub(crate) fn circles(&self, floor: &[String]) -> Vec<Vec<String>> {
        let modules: Vec<&Module> =
            self.files.keys().filter(|key| key.starts_with(floor)).collect();
        let arrows: BTreeMap<&Module, BTreeSet<&Module>> =
            modules.iter().map(|module| (*module, self.imports_of(module, floor))).collect();
        let reach = |from: &Module| {
            let mut seen = BTreeSet::new();
            let mut next: Vec<&Module> = arrows[from].iter().copied().collect();
            while let Some(module) = next.pop() {
                if seen.insert(module) {
                    next.extend(arrows[module].iter().copied());
                }
            }
            seen
        };
        let reached: BTreeMap<&Module, BTreeSet<&Module>> =
            modules.iter().map(|module| (*module, reach(module))).collect();
        let mut circles: Vec<Vec<String>> = Vec::new();
        let mut done: BTreeSet<&Module> = BTreeSet::new();
        for module in &modules {
            if done.contains(module) || !reached[module].contains(module) {
                continue;
            }
            let tied: Vec<&Module> = reached[module]
                .iter()
                .copied()
                .filter(|other| reached[other].contains(module))
                .collect();
            let text = |other: &&Module| {
                let within = arrows[*other].iter().filter(|target| tied.contains(target));
                let targets: Vec<String> = within.map(|target| target.join("::")).collect();
                format!("{} -> {}", other.join("::"), targets.join(", "))
            };
            circles.push(tied.iter().map(text).collect());
            done.extend(tied);
        }
        circles
    }
}
