//! One page of a listing, as S3, GCS and Azure write it. Pure.
//!
//! `object_store` takes what it finds in a page for all there is: a page without its end, one that says that there is more
//! but not where, or a name that is no path are at best lost in it. So a page is read here first.

use quick_xml::Reader;
use quick_xml::events::Event;

/// What a page names, and how it goes on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// Names as they are in the bucket, with lengths in bytes.
    pub(crate) objects: Vec<(String, u64)>,
    /// Where the next page begins; `None` is: this was the last one.
    pub(crate) next: Option<String>,
}

/// Reads a page, or says why it is not whole.
pub(crate) fn read(xml: &[u8]) -> Result<Page, String> {
    let mut found = Found::default();
    let mut reader = Reader::from_reader(xml);
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    loop {
        match reader.read_event().map_err(|error| format!("a page is no XML: {error}"))? {
            Event::Start(start) => {
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                text.clear();
            }
            Event::Empty(empty) => {
                path.push(String::from_utf8_lossy(empty.local_name().as_ref()).into_owned());
                found.element(&path, "")?;
                path.pop();
            }
            Event::Text(part) => text.push_str(&part.decode().map_err(|_| "a page is not UTF-8")?),
            Event::CData(part) => text.push_str(&part.decode().map_err(|_| "a page is not UTF-8")?),
            Event::GeneralRef(reference) => text.push(character(&reference)?),
            Event::End(_) => {
                found.element(&path, &text)?;
                path.pop();
                text.clear();
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !path.is_empty() {
        return Err("a page ends in the middle".to_owned());
    }
    found.finish()
}

/// The character that `&name;` or `&#number;` stands for.
fn character(reference: &quick_xml::events::BytesRef<'_>) -> Result<char, String> {
    let unknown = || "a page has an entity nobody knows".to_owned();
    if let Some(character) = reference.resolve_char_ref().map_err(|_| unknown())? {
        return Ok(character);
    }
    match reference.decode().map_err(|_| unknown())?.as_ref() {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        _ => Err(unknown()),
    }
}

#[derive(Default)]
struct Found {
    page: Page,
    is_listing: bool,
    truncated: Option<bool>,
    /// Azure's way to go on; empty at the end, and always there.
    marker: Option<String>,
    count: Option<u64>,
    name: Option<String>,
    len: Option<u64>,
    is_folder: bool,
}

impl Found {
    fn element(&mut self, path: &[String], text: &str) -> Result<(), String> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["ListBucketResult" | "EnumerationResults"] => self.is_listing = true,
            ["ListBucketResult", "IsTruncated"] => {
                self.truncated = Some(match text.trim() {
                    "true" => true,
                    "false" => false,
                    _ => return Err("a page does not say whether it is the last".to_owned()),
                });
            }
            ["ListBucketResult", "NextContinuationToken"] => {
                self.page.next = Some(text.to_owned()).filter(|token| !token.is_empty());
            }
            ["ListBucketResult", "KeyCount"] => self.count = Some(number(text)?),
            ["EnumerationResults", "NextMarker"] => self.marker = Some(text.to_owned()),
            ["ListBucketResult", "Contents", "Key"] | ["EnumerationResults", "Blobs", "Blob", "Name"] => {
                self.name = Some(text.to_owned());
            }
            ["ListBucketResult", "Contents", "Size"]
            | ["EnumerationResults", "Blobs", "Blob", "Properties", "Content-Length"] => {
                self.len = Some(number(text)?);
            }
            ["EnumerationResults", "Blobs", "Blob", "Properties", "ResourceType"] => {
                self.is_folder = text == "directory";
            }
            ["ListBucketResult", "Contents"] | ["EnumerationResults", "Blobs", "Blob"] => self.object()?,
            _ => {}
        }
        Ok(())
    }

    fn object(&mut self) -> Result<(), String> {
        let is_folder = std::mem::take(&mut self.is_folder);
        match (self.name.take(), self.len.take()) {
            (Some(name), Some(len)) if !is_folder => self.page.objects.push((name, len)),
            // accounts with real folders list them; they hold nothing
            (Some(_), _) if is_folder => {}
            _ => return Err("a page names an object without name or length".to_owned()),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Page, String> {
        if !self.is_listing {
            return Err("what was answered is no listing".to_owned());
        }
        match (self.truncated, self.marker.take()) {
            (Some(false), None) => {
                if self.page.next.is_some() {
                    return Err("a page says that it is the last and where the next begins".to_owned());
                }
            }
            (Some(true), None) => {
                if self.page.next.is_none() {
                    return Err("a page says that there is more and not where".to_owned());
                }
            }
            (None, Some(marker)) => self.page.next = Some(marker).filter(|marker| !marker.is_empty()),
            _ => return Err("a page does not say whether it is the last".to_owned()),
        }
        // fewer than counted is a loss; more is a server that counts badly
        if self.count.is_some_and(|count| count > self.page.objects.len() as u64) {
            return Err(format!("a page names {} objects and counts more", self.page.objects.len()));
        }
        Ok(self.page)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| "a page has a number that is none".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn s3(inner: &str) -> Result<Page, String> {
        read(
            format!(
                "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://x/\">{inner}</ListBucketResult>"
            )
            .as_bytes(),
        )
    }

    const TWO: &str = "<Contents><Key>a/1</Key><Size>5</Size></Contents>\
                       <Contents><Key>a/&amp;&#50;</Key><Size>6</Size></Contents>";

    fn refuse(page: Result<Page, String>, reason: &str) {
        let error = page.unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn a_page_of_s3_is_read_whole() {
        let page = s3(&format!("<KeyCount>2</KeyCount><IsTruncated>false</IsTruncated>{TWO}")).unwrap();
        assert_eq!(page.objects, [("a/1".to_owned(), 5), ("a/&2".to_owned(), 6)]);
        assert_eq!(page.next, None);
        let more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>";
        assert_eq!(s3(&format!("{more}{TWO}")).unwrap().next.as_deref(), Some("t"));
    }

    #[test]
    fn a_page_of_azure_is_read_whole() {
        let blob = |name: &str, kind: &str| {
            format!(
                "<Blob><Name>{name}</Name><Properties><Content-Length>5</Content-Length>{kind}</Properties></Blob>"
            )
        };
        let folder = blob("a", "<ResourceType>directory</ResourceType>");
        let page = |end: &str| {
            read(
                format!(
                    "<EnumerationResults><Blobs>{folder}{}</Blobs>{end}</EnumerationResults>",
                    blob("a/1", "")
                )
                .as_bytes(),
            )
        };
        let last = page("<NextMarker />").unwrap();
        assert_eq!((last.objects, last.next), (vec![("a/1".to_owned(), 5)], None));
        assert_eq!(page("<NextMarker>m</NextMarker>").unwrap().next.as_deref(), Some("m"));
        refuse(page(""), "whether it is the last");
    }

    #[test]
    fn a_page_that_was_cut_is_no_page() {
        let whole = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{TWO}</ListBucketResult>");
        read(whole.as_bytes()).unwrap();
        for len in 0..whole.len() {
            read(&whole.as_bytes()[..len]).unwrap_err();
        }
    }

    #[test]
    fn a_page_that_contradicts_itself_is_no_page() {
        refuse(s3(TWO), "whether it is the last");
        refuse(s3("<IsTruncated>true</IsTruncated>"), "more and not where");
        refuse(s3("<IsTruncated>maybe</IsTruncated>"), "whether it is the last");
        let both = "<IsTruncated>false</IsTruncated><NextContinuationToken>t</NextContinuationToken>";
        refuse(s3(both), "the last and where the next");
        refuse(s3(&format!("<KeyCount>3</KeyCount><IsTruncated>false</IsTruncated>{TWO}")), "counts more");
        refuse(
            s3("<IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>"),
            "without name or length",
        );
        refuse(
            s3("<IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>x</Size></Contents>"),
            "number",
        );
        refuse(read(b"<html><body>Sign in to the airport's network</body></html>"), "no listing");
        refuse(read(b""), "no listing");
    }
}
