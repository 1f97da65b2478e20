//! One vault in two cells, as programs on one machine, with keys in software.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::program::{PROGRAM, Program};

/// Two cells of one vault, not yet served.
pub(crate) struct Cells {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ports: [u16; 2],
}

impl Cells {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // free a moment ago: good enough for a test
        let ports = [(); 2]
            .map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let cells = Self { dir, ports };
        succeed(Command::new(PROGRAM).args(["init", "--insecure-dev", "--data"]).arg(cells.data("keys")));
        let [a, b] = ports;
        let map = format!("version = 3\ncells = [['https://127.0.0.1:{a}'], ['https://127.0.0.1:{b}']]\n");
        std::fs::write(cells.path("map"), map).unwrap();
        for number in [0, 1] {
            let data = cells.data(&number.to_string());
            std::fs::create_dir(&data).unwrap();
            std::fs::copy(cells.data("keys").join("keys.soft"), data.join("keys.soft")).unwrap();
            let config = format!(
                "data = '{}'\nlisten = '127.0.0.1:{}'\ninsecure_dev = true\n[cell]\nmap = '{}'\nnumber = {number}\n",
                data.display(),
                ports[number],
                cells.path("map").display()
            );
            std::fs::write(cells.path(&format!("{number}.toml")), config).unwrap();
        }
        cells
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data-".to_owned() + name)
    }

    pub(crate) fn sign_map(&self) {
        succeed(
            Command::new(PROGRAM)
                .arg("sign-cells")
                .arg("--data")
                .arg(self.data("keys"))
                .arg(self.path("map")),
        );
    }

    pub(crate) fn program(&self, command: &str, number: usize) -> Command {
        let mut program = Command::new(PROGRAM);
        program.arg(command).arg("--config").arg(self.path(&format!("{number}.toml")));
        program
    }

    /// Adds to the settings of a cell.
    pub(crate) fn configure(&self, number: usize, more: &str) {
        let path = self.path(&format!("{number}.toml"));
        let settings = std::fs::read_to_string(&path).unwrap() + more;
        std::fs::write(path, settings).unwrap();
    }

    pub(crate) fn records(&self, number: usize) -> u64 {
        let status = succeed(&mut self.program("status", number));
        let status = String::from_utf8(status.stdout).unwrap();
        status.lines().find_map(|line| line.strip_prefix("records ")).unwrap().parse().unwrap()
    }
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

pub(crate) fn fail(command: &mut Command, why: &str) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(why), "{errors}");
}

/// As [`fail`], for a `serve` that would go on for ever if it served.
pub(crate) fn refuse(serve: &mut Command, why: &str) {
    let said = Program::start(serve).refused();
    assert!(said.contains(why), "{said}");
}
